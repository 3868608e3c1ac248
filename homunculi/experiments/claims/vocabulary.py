"""Claims about models whose state is as wide as the vocabulary, so that every state reads as words."""

from __future__ import annotations

from dataclasses import replace

from homunculi.evals.statistics import holm
from homunculi.experiments.claims.direct_readings import readings, reads_as_words
from homunculi.experiments.claims.entry import Claim, Plan, claim
from homunculi.experiments.claims.evidence import (
    ALPHA,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Evidence,
    Finding,
    Json,
    Rule,
)
from homunculi.experiments.claims.skilled import battery, generalises_further, reaches_beyond_ngrams
from homunculi.experiments.claims.training_curves import leaps_more, memorises
from homunculi.experiments.claims.verdicts import all_better, beats, said

SYSTEM = "vocabulary space"
# Published variants by the name of their recipe, in the order of their numbers.
FAMILY = (
    "shared_attention",
    "convolution",
    "fourier_memory",
    "tied_fourier",
    "fft_memory",
    "bands",
    "soft_ops",
    "low_rank",
    "dense_memory",
    "policy",
    "mixed_ops",
    "hard_routing",
    "slices",
    "embedded_slices",
    "adaptive",
    "sparse_slices",
    "columns",
)
RANKS = (2, 4, 8, 16, 32, 64, 128)
TOKENS = ("tokens",)
# What makes the scores that two claims read.
HOPS = (
    "homunculi skills 'dense-1=vocab_dense_memory;model.n_steps=1;model.d_memory=32;model.d_mlp=64' "
    "'dense-8=…;model.n_steps=8' "
    "task=agreement,name_recall distance=6,16 seeds=3 steps=400 rows=32 lrs=3e-3 wds=0.1 --match none"
)
ALGORITHMS = (
    "homunculi skills vocab_dense_memory vocab_shared_maps gpt recursive task=copy,reverse,add,parity tokens=8 "
    "digits=4 length=16 seeds=3 steps=400 rows=32 lrs=3e-3 wds=0.1 --match none"
)
READINGS = "python -m benchmarks.readings --device cuda --write benchmarks/results/readings.json"
EQUAL = {"main": "parameters", "flops": "FLOPs"}  # part of vocab-match → what is equal there


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{name.replace('_', '-')}=vocabulary:{name}" for name in names)


@claim
def rank8() -> Claim:
    rest = [name for name in FAMILY if name not in ("low_rank", "convolution", "shared_attention")]
    sides = _sides("low_rank", "convolution", "shared_attention", *rest, "shared_maps", "gpt")
    return Claim(
        id="vocab-rank8",
        system=SYSTEM,
        claim="a low-rank map of rank 8 (164 K parameters) beats the causal convolution and shared attention",
        figure="loss 5.24 in 100 steps",
        check="all variants on the same tokens, each at its tuned learning rate",
        control="a bigram and a trigram count model of the same tokens",
        rule=_with_all(all_better(("low-rank", "convolution"), ("low-rank", "shared-attention"))),
        sizes={"medium": (Plan(sides, match=TOKENS),)},
        minutes={"medium": 0.5},
    )


@claim
def rank64() -> Claim:
    sides = tuple(f"rank-{rank}=vocabulary:low_rank;model.rank={rank}" for rank in RANKS)
    common = ("corpus=tinystories", "text.val_corpus=", "steps=680", "output.log_every=10")  # four passes
    return Claim(
        id="vocab-rank64",
        system=SYSTEM,
        claim="rank 64 memorises where rank 8 generalises",
        figure="training loss 0.04",
        check="ranks 2 to 128, training and validation loss on the same kind of text, which is read four times",
        control="the certificate; random tokens, which nothing can predict without looking at them",
        rule=memorises("rank-64", than="rank-8", ladder=tuple(f"rank-{rank}" for rank in RANKS)),
        sizes={"medium": (Plan(sides, match=TOKENS, common=common),)},
        minutes={"medium": 0.3},
    )


@claim
def fourier() -> Claim:
    forms = _sides("fourier_memory", "fft_memory")
    shuffled = tuple(f"{side.replace('=', '-shuffled=', 1)};model.word_order=shuffled" for side in forms)
    dense = "dense-memory=vocabulary:dense_memory;model.d_memory=5;model.d_mlp=10"
    names = ("fourier-memory", "fft-memory")
    return Claim(
        id="vocab-fourier",
        system=SYSTEM,
        claim="projections on Fourier components across positions get stuck",
        figure="loss 6.81",
        check="both Fourier forms against linear attention with dense maps at equal parameters",
        control="a vocabulary in permuted order, which is shown beside and decides nothing",
        rule=_with_pairs(
            all_better(*(("dense-memory", name) for name in names)), *((f"{name}-shuffled", name) for name in names)
        ),
        beyond="whether they get stuck: ends of runs are compared, of one length",
        sizes={"medium": (Plan((*forms, dense, *shuffled)),)},
        minutes={"medium": 0.4},
    )


@claim
def multihop() -> Claim:
    return Claim(
        id="vocab-multihop",
        system=SYSTEM,
        claim="several hops reach beyond n-grams",
        figure="an open question of the authors",
        check="agreement and recall over long distances by number of hops",
        control="the ceiling of n-grams on each task; the same model with one hop",
        rule=reaches_beyond_ngrams("dense-8", "dense-1", HOPS),
        count=battery("skills_hops"),
    )


@claim
def readable() -> Claim:
    return Claim(
        id="vocab-readable",
        system=SYSTEM,
        claim="every state between input and output reads as words",
        check="loss of each step's state read out directly, against the one before and a reading without context",
        control="a logit lens on the plain transformer, put to the same questions; it is shown and decides nothing",
        rule=reads_as_words(READINGS),
        beyond="whether a person finds the words telling; only losses are judged",
        count=readings("readings"),
    )


@claim
def match() -> Claim:
    sides = _sides("gpt", "shared_maps")
    plans = (
        Plan(sides),
        Plan(sides, match=("flops", "tokens"), name="flops"),
        Plan(_sides("slices", "embedded_slices"), match=TOKENS, name="embedding"),
    )
    return Claim(
        id="vocab-match",
        system=SYSTEM,
        claim="readable states can match opaque embeddings at language modelling",
        figure="an open question of the authors",
        check="the best readable variant against the plain transformer at equal parameters and at equal FLOPs",
        control="the same body with an embedding, which is labelled as such",
        rule=_matches("shared-maps", "gpt"),
        sizes={"medium": plans},
        minutes={"medium": 0.6},
    )


@claim
def shared_maps() -> Claim:
    return Claim(
        id="vocab-shared-maps",
        system=SYSTEM,
        claim="a readable transformer whose steps share their maps beats the published form with shared attention",
        figure="none: it is this project's own",
        check="both at equal parameters on the same batches, each at its tuned learning rate",
        control="a plain transformer of equal parameters",
        rule=_with_pairs(beats("shared-maps", over="shared-attention"), ("shared-maps", "gpt")),
        beyond="the other published forms at equal parameters; longer training",
        sizes={"medium": (Plan(_sides("shared_attention", "shared_maps", "gpt")),)},
        minutes={"medium": 0.8},
    )


@claim
def attention() -> Claim:
    return Claim(
        id="vocab-attention",
        system=SYSTEM,
        claim="attention in vocabulary space is expensive and stops improving",
        figure="loss 6.06",
        check="the form with shared attention at its tuned rate, on the same batches as the control",
        control="linear attention at equal parameters",
        rule=beats("dense-memory", over="shared-attention"),
        beyond="whether it stops improving: ends of runs are compared, of one length",
        sizes={"medium": (Plan(_sides("shared_attention", "dense_memory")),)},
        minutes={"medium": 0.6},
    )


@claim
def stability() -> Claim:
    forms = ("soft_ops", "dense_memory")
    rates = {"": "", "-fast": ";lr=3e-2", "-faster": ";lr=9e-2"}
    sides = tuple(
        f"{form.replace('_', '-')}{name}=vocabulary:{form}{rate}" for name, rate in rates.items() for form in forms
    )
    clips = {"main": (), "unclipped": ("train.clip=0",)}
    plans = tuple(
        Plan(sides, match=TOKENS, name=name, common=("output.log_every=5", *clip), factors=())
        for name, clip in clips.items()
    )
    return Claim(
        id="vocab-stability",
        system=SYSTEM,
        claim="a bank of operations trains unstably",
        figure="two spikes",
        check="leaps of the training loss over seeds and rates, with gradients clipped and not; both have the rates "
        "that are named",
        control="linear attention with dense maps",
        rule=leaps_more("soft-ops", than="dense-memory", settings=tuple(rates), parts=tuple(clips)),
        sizes={"medium": plans},
        minutes={"medium": 0.4},
    )


@claim
def algorithms() -> Claim:
    return Claim(
        id="vocab-algorithms",
        system=SYSTEM,
        claim="it learns algorithms where others memorise patterns",
        figure="a slogan",
        check="copying, reversing, adding, parity, on lengths beyond those of training",
        control="a plain and a recursive transformer",
        rule=generalises_further(("vocab_dense_memory", "vocab_shared_maps"), ("gpt", "recursive"), ALGORITHMS),
        count=battery("skills_algorithms"),
    )


def _with_all(rule: Rule) -> Rule:
    """The finding of a rule, with where every side of the comparison ended, its size, and the count models."""

    def extended(evidence: Evidence) -> Finding:
        finding, part = rule(evidence), evidence.main
        figures: Json = dict(finding.figures)
        for name in part.sides:
            if part.ends(name):
                figures[f"bits/byte of {name}"] = part.mean(name)
                figures[f"parameters of {name}"] = part.parameters(name)
        figures |= {f"bits/byte of {model['name']}": model["val_bpb"] for model in part.stored["baselines"]}
        return _replaced(finding, figures)

    return extended


def _with_pairs(rule: Rule, *pairs: tuple[str, str]) -> Rule:
    """The finding of a rule, with the intervals of further pairs that do not decide."""

    def extended(evidence: Evidence) -> Finding:
        finding = rule(evidence)
        figures: Json = dict(finding.figures)
        for a, b in pairs:
            if (interval := evidence.main.interval(a, b)) is not None:
                figures[f"{a} - {b}"] = [interval.difference, interval.low, interval.high]
        return _replaced(finding, figures)

    return extended


def _matches(side: str, plain: str) -> Rule:
    """No worse than the plain transformer at equal parameters and at equal FLOPs: supported where neither interval
    reaches above 0, refuted where one of the two, their p adjusted together, ends above. The price of having no
    embedding is shown beside, and decides nothing."""

    def rule(evidence: Evidence) -> Finding:
        parts = {name: evidence.parts[name] for name in EQUAL if name in evidence.parts}
        found = {EQUAL[name]: part.interval(side, plain) for name, part in parts.items()}
        known = {what: interval for what, interval in found.items() if interval is not None}
        if len(known) < len(EQUAL):
            return Finding(INCONCLUSIVE, f"{side} and {plain} share fewer than 2 runs at equal parameters and FLOPs")
        first, second = known.values()
        figures: Json = {f"bits/byte of {name}": evidence.main.mean(name) for name in (side, plain)}
        figures["at equal FLOPs"] = [second.difference, second.low, second.high]
        if (part := evidence.parts.get("embedding")) and (gain := part.interval("embedded-slices", "slices")):
            figures["an embedding instead, same body"] = [gain.difference, gain.low, gain.high]
        n = min(interval.n for interval in known.values())
        adjusted = zip(known, holm([interval.p for interval in known.values()]), strict=True)
        worse = [what for what, p in adjusted if p < ALPHA and known[what].difference > 0]
        below = [what for what, interval in known.items() if interval.high <= 0]
        if worse:
            return said(REFUTED, f"{side} ends above {plain} at equal {' and '.join(worse)}", first, n, figures)
        if len(below) < len(EQUAL):
            shown = f"{side} ends below {plain} at equal {below[0]} alone" if below else "no difference shown"
            reason = f"{shown}; it may be worse at equal {' and '.join(what for what in known if what not in below)}"
            return said(INCONCLUSIVE, reason, first, n, figures)
        if any(part.diverged(side) > part.diverged(plain) for part in parts.values()):
            reason = f"{side} ends no higher than {plain}; but runs of {side} diverged that are not in the figures"
            return said(INCONCLUSIVE, reason, first, n, figures)
        return said(SUPPORTED, f"{side} ends no higher than {plain}, either way", first, n, figures)

    return rule


def _replaced(finding: Finding, figures: Json) -> Finding:
    return replace(finding, figures=figures)
