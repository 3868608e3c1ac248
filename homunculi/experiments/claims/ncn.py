"""Claims about neuromodulatory control networks (M. C. Morgan 2025: paper, repository and training log)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from homunculi.evals.statistics import FEWEST_ITEMS, bootstrap_interval
from homunculi.experiments.claims.entry import Claim, Plan, claim
from homunculi.experiments.claims.evidence import Evidence, Finding, Json, Rule
from homunculi.experiments.claims.measures import counts_to, stays_within, widens
from homunculi.experiments.claims.verdicts import beats

BLOCKS = {"small": 6, "medium": 5}  # as many as the plain recipe of that size has
MINUTES = {"small": 4.0, "medium": 1.7}
SCAN = "scans of every run of the comparison (homunculi scan makes them of one): signals by block and token"

SIGNALS = ("gain", "precision", "gate")
# A controller whose hidden layer is always the same hears nothing: its signals are learned constants of each block.
CONTROLS = {
    "frozen": ",".join(f"control.{name}=neutral:1.0" for name in SIGNALS),
    "deaf": "control.hidden=neutral:1.0",
    "shuffled": ",".join(f"control.{name}=shuffled" for name in SIGNALS),
}

# The published run: 18 M parameters, one epoch of 520 M tokens in batches of 64 · 512.
PUBLISHED = {"d_model": 256, "n_blocks": 6, "n_heads": 8}
EPOCH = ("corpus=hf:roneneldan/TinyStories", "text.val_corpus=", "text.vocab_size=50257")
PUBLISHED_COMMON = (*EPOCH, "steps=15879", "batch_tokens=32768", *(f"model.{k}={v}" for k, v in PUBLISHED.items()))
CLAIMED_GAIN = 1.5082 / 1.7047 - 1  # of ln 5.5

BENCH = "bench_architectures_h100.json"
SHARE = "controller as published, % of all parameters"
_SHAPE = {"vocab_size": 50257, "d_model": 256, "n_blocks": 6, "n_heads": 8, "d_mlp": 1024, "max_seq_len": 512}

# Width and heads of the four sizes.
LADDER = {"small": ((64, 2), (96, 2), (128, 4), (192, 4)), "medium": ((128, 2), (192, 3), (256, 4), (384, 6))}
WEIGHTS = {"free": "0", "regulated": "0.01", "tenfold": "0.1", "hundredfold": "1"}


@claim
def perplexity() -> Claim:
    def plan(size: str, *common: str, shape: str = "") -> tuple[Plan]:
        ncn = f"ncn:{size}{shape}"
        changed = [f"{name}={ncn};train.interventions={changes}" for name, changes in CONTROLS.items()]
        return (Plan((f"gpt=gpt:{size}", f"ncn={ncn}", *changed), common=common),)

    sizes = {size: plan(size, shape=f";model.n_blocks={n_blocks}") for size, n_blocks in BLOCKS.items()}
    return Claim(
        id="ncn-perplexity",
        system="NCN",
        claim="with a small controller of gain, precision and gates a model predicts stories better than a plain one",
        figure="18 M parameters, one epoch of TinyStories: loss 1.5082, perplexity 4.5 against 5.5 or worse",
        check="the causal controller against a plain transformer of equal parameters on the same batches",
        control="its signals held at neutral, constants of each block, or another token's; the published form, reading "
        "ahead and not",
        rule=_with_leak(beats("ncn", over="gpt", controls=tuple(CONTROLS), claimed={"full": CLAIMED_GAIN})),
        sizes=sizes | {"full": plan("medium", *PUBLISHED_COMMON)},
        minutes=MINUTES | {"full": 7.0},
        beside={"leak": _measure_leak},
    )


def _measure_leak(*given: Any) -> Json:
    from homunculi.experiments.claims.leak import price_of_leak

    return price_of_leak(*given)


def _with_leak(rule: Rule) -> Rule:
    """The finding of a rule, with the price of the published controller's look ahead beside it."""

    def judged(evidence: Evidence) -> Finding:
        finding, leak = rule(evidence), evidence.measured.get("leak")
        if leak is None or len(leak["differences"]) < FEWEST_ITEMS:
            return finding
        price = bootstrap_interval(leak["differences"])
        figures = {
            "published, reading ahead, nats/token": leak["whole"],
            "published, honest, nats/token": leak["prefix"],
            "price of its leak, nats/token": [price.mean, price.low, price.high],
        }
        return replace(finding, figures={**finding.figures, **figures})

    return judged


@claim
def overhead() -> Claim:
    return Claim(
        id="ncn-overhead",
        system="NCN",
        claim="the controller costs 1.56 % of the parameters",
        figure="281.3 K of 18.0 M parameters",
        check="parameters of the published shape, counted; training tokens/s of ours against our plain transformer",
        rule=counts_to(SHARE, 1.56, 0.01, "%"),
        count=count_overhead,
    )


def count_overhead(results: Path | None) -> Json:
    """Shares of the controller's parameters, and speeds where a benchmark lies beside the folder of results."""
    published = _sizes("ncn_published", init="intended")
    ours, plain = _sizes("ncn", activation="gelu"), _sizes("gpt", activation="gelu")
    controller = sum(n for name, n in published.items() if name.startswith("controller."))
    whole, bare, own = sum(published.values()), sum(plain.values()), sum(ours.values())
    found = {
        SHARE: 100 * controller / whole,
        "of the model without it, %": 100 * controller / (whole - controller),
        "our causal controller, % of all parameters": 100 * (own - bare) / own,
    }
    speeds = _speeds(results)
    return found | ({"training speed of ours against plain": speeds[1] / speeds[0]} if speeds else {})


def _sizes(architecture: str, **fields: Any) -> dict[str, int]:
    """Name of a parameter → its size, at the published shape."""
    import torch

    from homunculi.models import get

    found = get(architecture)
    with torch.device("meta"):
        built = found.model_type(found.config_type(**_SHAPE, **fields))
    return {name: parameter.numel() for name, parameter in built.named_parameters()}


def _speeds(results: Path | None) -> tuple[float, float] | None:
    """Measured training tokens/s of the plain and the modulated 18 M shape on one GPU."""
    path = None if results is None else results.resolve().parent / "results" / BENCH
    try:
        cases = json.loads(path.read_bytes())["cases"] if path else {}
        plain, ncn = (float(cases[name]["tokens_per_s"]) for name in ("train-18m", "train-18m-ncn"))
        return (plain, ncn) if plain > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a figure beside the verdict, which does not need it


@claim
def specialise() -> Claim:
    return Claim(
        id="ncn-specialise",
        system="NCN",
        claim="blocks take on different precisions by themselves: some focus, some scan",
        figure="read off one heatmap",
        check="variance of mean precision between blocks, and whether its ranking is the same for all seeds",
        control="the same at initialisation, and with a shuffled controller input",
        needs=SCAN,
    )


@claim
def surprise() -> Claim:
    return Claim(
        id="ncn-surprise",
        system="NCN",
        claim="precision of deep blocks moves at a word that turns the story, such as but",
        figure="read off one heatmap",
        check="change of the signal at turning words against matched connectives, and against the model's surprisal",
        control="permuted positions",
        needs=SCAN,
    )


@claim
def homeostasis() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        model = f"ncn:{size};model.n_blocks={BLOCKS[size]}"
        return (Plan(tuple(f"{name}={model};model.homeostasis={weight}" for name, weight in WEIGHTS.items())),)

    return Claim(
        id="ncn-homeostasis",
        system="NCN",
        claim="the homeostatic penalty keeps gain between 0.99 and 1.05, which nothing else does",
        figure="gain range of the published run; penalty 0.0033",
        check="range of gain over tokens and losses for penalties of weight 0, 0.01, 0.1 and 1",
        control="weight 0",
        rule=stays_within("gain", 0.99, 1.05, side="regulated", free="free", sweep=tuple(WEIGHTS)),
        sizes={size: plan(size) for size in BLOCKS},
        minutes=MINUTES,
        beyond="the effective rank of the signals, so whether they collapse, needs " + SCAN,
    )


@claim
def phasic() -> Claim:
    return Claim(
        id="ncn-phasic",
        system="NCN",
        claim="signals differ for the same words in another order",
        figure="the dog chased the cat, the cat chased the dog",
        check="distance between signals of pairs with subject and object swapped, against that of paraphrases",
        control="a controller that sees a bag of words",
        needs=SCAN,
    )


@claim
def skip() -> Claim:
    return Claim(
        id="ncn-skip",
        system="NCN",
        claim="gates near zero allow feed-forward parts to be skipped",
        figure="often approach zero",
        check="share of gates below a threshold; loss against FLOPs and time when those parts are skipped",
        control="skipping as many at random",
        needs="evaluation of a trained run under several thresholds, with its FLOPs and its time",
    )


@claim
def kv() -> Claim:
    return Claim(
        id="ncn-kv",
        system="NCN",
        claim="keys and values of positions of low precision can be compressed",
        check="loss against cache bytes when positions of low precision are quantised harder",
        control="uniform quantisation to the same bytes",
        needs="a decoding cache that is quantised position by position",
    )


@claim
def plasticity() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        model = f"ncn:{size};model.n_blocks={BLOCKS[size]};model.plasticity=gain"
        return (Plan(tuple(f"{name}={model};train.plasticity={name}" for name in ("off", "own", "shuffled"))),)

    return Claim(
        id="ncn-plasticity",
        system="NCN",
        claim="a model learns better when each block's updates and decay are scaled by its own gain",
        check="updates scaled by the running mean of each block's gain, against no scaling",
        control="the same factors handed to other blocks",
        rule=beats("own", over="off", controls=("shuffled",)),
        sizes={size: plan(size) for size in BLOCKS},
        minutes=MINUTES,
    )


@claim
def scaling() -> Claim:
    def plans(size: str) -> tuple[Plan, ...]:
        found = []
        for width, n_heads in LADDER[size]:
            shape = f"model.n_blocks={BLOCKS[size]};model.d_model={width};model.n_heads={n_heads}"
            found.append(Plan((f"gpt=gpt:{size};{shape}", f"ncn=ncn:{size};{shape}"), name=f"d{width}"))
        return tuple(found)

    return Claim(
        id="ncn-scaling",
        system="NCN",
        claim="the larger the model, the larger the share of the loss that the controller saves",
        check="controller against plain transformer at four sizes; slope of the gain, a power law for each",
        control="the plain transformer of each size",
        rule=_of_ladder(),
        sizes={size: plans(size) for size in LADDER},
        minutes={"small": 4.0, "medium": 1.5},
    )


def _of_ladder() -> Rule:
    rules: dict[str, Callable[[Evidence], Finding]] = {
        size: widens("ncn", "gpt", [f"d{width}" for width, _ in ladder]) for size, ladder in LADDER.items()
    }
    return lambda evidence: rules[evidence.size](evidence)


@claim
def coherence() -> Claim:
    return Claim(
        id="ncn-coherence",
        system="NCN",
        claim="it keeps track of subjects and objects and drifts less than a plain transformer of its size",
        figure="one sample",
        check="who, where and what in continuations of stories whose events are known; loss by position",
        control="the plain transformer",
        needs="the task of entity tracking in the battery of skills",
    )


@claim
def gating() -> Claim:
    return Claim(
        id="ncn-gating",
        system="NCN",
        claim="gates save capacity on easy tokens",
        figure="read off one heatmap",
        check="gate and gain of a token against its surprisal",
        control="permuted tokens",
        needs=SCAN,
    )


@claim
def context() -> Claim:
    return Claim(
        id="ncn-context",
        system="NCN",
        claim="rote contexts sharpen attention and creative ones loosen it, whatever their words",
        figure="examples in words",
        check="precision on rote and on open continuations of matched words",
        control="shuffled labels",
        needs=SCAN + ", and pairs of texts with matched words",
    )
