"""Which experts tokens choose, whether the choice says anything about the token, and what is inhibited.

The chosen experts are those of the largest logits, plus the bias of balance where the model's experts keep one. How
much the first choice says about the token is their mutual information in nats, at most the smaller of their entropies.
Counts of N tokens in E experts and K classes show about (E − 1)(K − 1) / 2N nats where there are none, so the same is
measured with the tokens shuffled, and scalars have that mean taken off.

Legend: B rows, T positions, E experts, A experts used by a token, U gates, N tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation, Site
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import Numbers, Places, numbers, takes_part
from homunculi.runs.measures import Measurement

CLASSES = ("word start", "continuation", "punctuation", "digit", "other")
N_BANDS = 4
SHUFFLES = 20
CLOSED = 0.5  # a gate below half of its neutral value


@instrument(
    "experts",
    view="heatmap",
    title="Experts",
    question="Are the experts used evenly, by different kinds of tokens, and which are inhibited?",
    taps=("steps.*.experts.weights", "steps.*.*open*", "steps.*.router.taking", "steps.*.paths.*.taking"),
    needs=("steps.*.experts.logits",),
)
def measure(seen: Observation) -> Measurement | None:
    chosen = choices(seen)
    if not chosen:
        return None
    n_experts = max(int(tensor.shape[-1]) for tensor in seen.sites("experts.logits").values())
    load = np.stack([_load(choice_NA, n_experts) for _, choice_NA, _ in chosen])
    balance = _balance(load)
    values: dict[str, Any] = {
        "load": load,
        "use": np.stack([balance, load.max(1)]),
        "mean balance": np.array(balance.mean()),
        "busiest share": np.array(load.max()),
    }
    axes: dict[str, tuple[str, ...]] = {"load": ("step", "expert"), "use": ("measure", "step")}
    labels = {"step": tuple(site.label for site, _, _ in chosen), "kind": CLASSES, "measure": ("balance", "busiest")}
    kinds = {"class": token_classes(seen.pieces), "frequency": frequency_bands(seen.ids_BT)}
    ids_BT = seen.ids_BT.cpu().numpy()
    for name, kind_V in kinds.items():
        if kind_V is None or ids_BT.max(initial=0) >= len(kind_V):
            continue
        told = [informs(choice_NA[:, 0], kind_V[ids_BT[there]]) for _, choice_NA, there in chosen]
        values |= _information(name, np.array(told))
        axes[f"{name} information"] = ("estimate", "step")
    labels["estimate"] = ("measured", "shuffled")
    if kinds["class"] is not None and "class information" in values:
        of = [(choice_NA[:, 0], kinds["class"][ids_BT[there]]) for _, choice_NA, there in chosen]
        values["load by class"] = np.stack([_load_by(kind_N, expert_N, n_experts) for expert_N, kind_N in of])
        axes["load by class"] = ("step", "kind", "expert")
    _inhibition(seen, values, axes, labels)
    units = {name: "nats" for name in values if "information" in name}
    return Measurement(values, axes, labels, units, _NOTES)


_NOTES = (
    "balance: entropy of the load over its most, 1 where all experts are used alike",
    "information of the first choice about the token, by kinds of tokens or by bands of how often they stand in the "
    "probe; a number alone is the mean over steps with what shuffled tokens give taken off",
    f"closed: a gate under {CLOSED} where 1 is neutral",
)


def choices(seen: Observation) -> list[tuple[Site, Places, Any]]:
    """Of each step with experts: the site, the chosen experts (N, A) of the tokens that take part, first choice first,
    and which those are (B, T). Steps that nobody takes are absent."""
    weights = {site.step: tensor for site, tensor in seen.sites("experts.weights").items()}
    sites = seen.sites("experts.logits")
    biases = _biases(seen, list(sites))
    found = []
    for site, logits_BTE in sites.items():
        there_BT = takes_part(seen, site, logits_BTE, "experts")
        if not there_BT.any():
            continue
        wide_NE = logits_BTE.detach().float().cpu()[torch.from_numpy(there_BT)]
        n_used = int(weights[site.step].shape[-1]) if site.step in weights else 1
        best_NA = (wide_NE + biases.get(site.block, 0.0)).topk(min(n_used, wide_NE.shape[-1]), -1).indices
        found.append((site, best_NA.numpy(), there_BT))
    return found


def _biases(seen: Observation, sites: list[Site]) -> dict[int, Tensor]:
    """Stored block → the bias that its experts add before they choose; empty where experts keep none or cannot be
    told apart."""
    blocks = list(dict.fromkeys(site.block for site in sites))
    sizes = {int(tensor.shape[-1]) for tensor in seen.sites("experts.logits").values()}
    held = (getattr(module, "bias_E", None) for module in seen.model.modules())
    kept = [t.detach().float().cpu() for t in held if isinstance(t, Tensor) and t.dim() == 1 and len(t) in sizes]
    return dict(zip(blocks, kept, strict=True)) if len(kept) == len(blocks) else {}


def informs(expert_N: Places, kind_N: Places) -> tuple[float, float, float]:
    """Mutual information of expert and kind of token in nats, and mean and deviation of it with kinds shuffled."""
    draw = np.random.default_rng(0)
    shuffled = [mutual_information(expert_N, draw.permutation(kind_N)) for _ in range(SHUFFLES)]
    return mutual_information(expert_N, kind_N), float(np.mean(shuffled)), float(np.std(shuffled))


def mutual_information(a_N: Places, b_N: Places) -> float:
    """I(a; b) in nats from counts, biased upwards."""
    if not len(a_N):
        return 0.0
    width = int(b_N.max()) + 1
    joint = np.bincount(a_N * width + b_N, minlength=(int(a_N.max()) + 1) * width).reshape(-1, width) / len(a_N)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / apart[there])).sum())


def token_classes(pieces: Sequence[str]) -> Places | None:
    """Of each id its place in `CLASSES`; None where nobody knows the pieces.

    A word starts with white space before it; letters without belong to a word that has begun, or stand behind a quote
    or at the beginning of a line, which an id alone does not tell."""
    if not pieces:
        return None
    return np.array([_class_of(piece) for piece in pieces], dtype=np.int64)


def _class_of(piece: str) -> int:
    bare = piece.lstrip()
    if not bare or "\ufffd" in bare or (bare.startswith("<|") and bare.endswith("|>")):
        return 4
    if bare[0].isdigit():
        return 3
    if bare[0].isalpha():
        return 0 if len(bare) < len(piece) else 1
    return 2 if not any(c.isalnum() for c in bare) else 4


def frequency_bands(ids_BT: Tensor) -> Places:
    """Of each id its band, 0 of the most frequent: by how often it stands in the probe, with about equal numbers of
    tokens in each band. Ids that are not there come last."""
    counts_V = np.bincount(ids_BT.cpu().numpy().ravel())
    order_V = np.argsort(-counts_V, kind="stable")
    middle = (np.cumsum(counts_V[order_V]) - counts_V[order_V] / 2) / max(1, counts_V.sum())
    band_V = np.empty(len(counts_V), dtype=np.int64)
    band_V[order_V] = np.minimum((N_BANDS * middle).astype(np.int64), N_BANDS - 1)
    return band_V


def _information(name: str, told_S3: Numbers) -> dict[str, Any]:
    measured, shuffled, deviation = told_S3.T
    return {
        f"{name} information": np.stack([measured, shuffled]),
        f"mean {name} information": np.array((measured - shuffled).mean()),
        f"mean {name} information null sd": np.array(np.sqrt((deviation**2).mean() / len(deviation))),
    }


def _load(choice_NA: Places, n_experts: int) -> Numbers:
    return np.bincount(choice_NA.ravel(), minlength=n_experts) / choice_NA.size


def _load_by(kind_N: Places, expert_N: Places, n_experts: int) -> Numbers:
    """Share of each expert among the first choices of each class, (K, E); NaN of a class that is not there."""
    counts = np.bincount(kind_N * n_experts + expert_N, minlength=len(CLASSES) * n_experts).reshape(-1, n_experts)
    with np.errstate(invalid="ignore"):
        shares: Numbers = counts / counts.sum(1, keepdims=True)
    return shares


def _balance(load_SE: Numbers) -> Numbers:
    logs = np.log(np.where(load_SE > 0, load_SE, 1.0))
    most = np.log(load_SE.shape[1]) or 1.0
    balance: Numbers = -(load_SE * logs).sum(1) / most
    return balance


def _inhibition(seen: Observation, values: dict[str, Any], axes: dict[str, Any], labels: dict[str, Any]) -> None:
    """Share of tokens for which each gate is closed, by step, of every kind of gate that the model has."""
    kinds: dict[str, dict[Site, Tensor]] = {}
    for site, tensor in seen.sites("*open*").items():
        if tensor.dim() == 3:
            kinds.setdefault(site.name.rsplit(".", 1)[-1], {})[site] = tensor
    for kind, gates in kinds.items():
        rows, means = [], []
        for site, open_BTU in gates.items():
            open_NU = numbers(open_BTU)[takes_part(seen, site, open_BTU)]
            rows.append((open_NU < CLOSED).mean(0) if len(open_NU) else np.full(open_BTU.shape[-1], np.nan))
            means.append(open_NU.mean(0) if len(open_NU) else np.full(open_BTU.shape[-1], np.nan))
        if len({len(row) for row in rows}) > 1:
            continue
        where, unit = f"step of {kind}", f"unit of {kind}"
        values |= {f"closed {kind}": np.stack(rows), f"mean {kind}": np.stack(means)}
        axes |= {f"closed {kind}": (where, unit), f"mean {kind}": (where, unit)}
        labels[where] = tuple(site.label for site in gates)
        values[f"closed share of {kind}"] = np.array(_mean(np.stack(rows)))


def _mean(x: Numbers) -> float:
    there = x[np.isfinite(x)]
    return float(there.mean()) if len(there) else float("nan")
