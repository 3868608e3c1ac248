"""Panels of a scan out of taps: any signal of a token, by step, whatever the architecture calls it.

A tap is a signal where it passes one number a token, (B, T) or (B, T, 1), or one for each layer under ``control.``, or
where it is one of the few vectors named in `_POOLED`. Tokens that a step does not take are left blank.

Legend: B batch (one row here), T tokens, R rows, H heads, E experts, D width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.schedule import Schedule, repeat_of
from homunculi.core.taps import TapInfo
from homunculi.experiments.changing import signals_of
from homunculi.runs.scans import Attention, Panel

ALWAYS = ("embed", "steps.*.resid_pre", "steps.*.resid_post", "steps.*.attn.pattern", "steps.*.experts.logits")
_STEP = re.compile(r"steps\.(\d+)\.(.+)")
_PER_LAYER = "control."
_WIDE = ("control.pool", "control.hidden", "control.state", "control.injection", "control.pass_signal")
# Vectors of which the mean over their last axis is shown: site → what it is a mean of.
_POOLED = {
    "prefrontal.open_experts": "experts",
    "prefrontal.open_heads": "heads",
    "memory.forget": "heads",
    "memory.write": "heads",
}
_TOGETHER = {"prefrontal.open_experts": "inhibition", "prefrontal.open_heads": "inhibition"}
_COMPUTED = ("depth", "experts", "update", "attention entropy")  # names of panels that are no tap's
_SMALLEST_SPAN = 0.02  # of a colour scale around a neutral value: less is drawn as nothing
_MOST_ROWS = 64
_MOST = 0.99  # share of the values that a colour scale is made for
MOST_PAIRS = 4_000_000  # of tokens, over heads and steps, that attention is given for: some 30 MB of JSON


@dataclass(frozen=True, slots=True)
class _Look:
    """How a site is called and scaled; None: from its values."""

    title: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


_LOOKS = {
    "control.gain": _Look("Gain of the update", "factor"),
    "control.precision": _Look("Precision of attention", "factor"),
    "control.depth": _Look("Passes asked for", "passes"),
    "control.gate": _Look("Gate of the feed-forward", "factor"),
    "amygdala.salience": _Look("Salience", "0 to 1", 0.0, 1.0),
    "amygdala.forecast": _Look("Forecast of surprise", "ln V nats"),
    "router.score": _Look("Router's score", "higher goes on"),
    "router.gate": _Look("Weight of a pass", "factor"),
    "prefrontal.halt": _Look("Wish to stop", "off the router's score"),
    "inhibition": _Look("Inhibition", "1: open, below: closed"),
    "experts.weights": _Look("Weight of the expert", "factor"),
    "memory.forget": _Look("Memory forgotten", "nats, mean over heads"),
    "memory.write": _Look("Writing to memory", "mean over heads"),
}


def wanted(taps: Sequence[TapInfo], schedule: Schedule) -> list[str]:
    """Names of the taps that panels read."""
    found = [tap.name for tap in taps if any(fnmatchcase(tap.name, pattern) for pattern in ALWAYS)]
    return found + [tap.name for tap in taps if tap.name not in found and _is_signal(tap, schedule)]


def _is_signal(tap: TapInfo, schedule: Schedule) -> bool:
    site = site_of(tap.name)
    if tap.shape[:2] != ("B", "T") or tap.name.startswith("readout.") or site in _WIDE:
        return False
    inner = tap.shape[2:]
    if site in _POOLED or inner in ((), (1,)):
        return True
    return tap.name.startswith(_PER_LAYER) and len(inner) <= 2 and inner[-1] == len(schedule)


def site_of(name: str) -> str:
    """A tap's name without its step."""
    match = _STEP.fullmatch(name)
    return match[2] if match else name


def step_of(name: str) -> int | None:
    """A tap's step, if it is in one."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def label_of(schedule: Schedule, step: int) -> str:
    """A step for a person: a layer, or of a loop a pass, with the block where a pass has several."""
    blocks = [one.block for one in schedule]
    if len(set(blocks)) == len(blocks):
        return f"layer {step + 1}"
    if blocks.count(blocks[step]) == 1:
        return "first layer" if step == 0 else "last layer" if step == len(blocks) - 1 else f"layer {step + 1}"
    looped = sorted({block for block in blocks if blocks.count(block) > 1})
    several = f", block {looped.index(blocks[step]) + 1}" if len(looped) > 1 else ""
    return f"pass {repeat_of(schedule, step) + 1}{several}"


def whole(seen: Mapping[str, Tensor], n_tokens: int) -> dict[str, Tensor]:
    """The taps that show every token at its place, and not only those that take part, one after the other."""

    def places(name: str, tensor: Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape[-2:] if site_of(name) == "attn.pattern" else tensor.shape[1:2])

    return {name: tensor for name, tensor in seen.items() if set(places(name, tensor)) == {n_tokens}}


def presence(seen: Mapping[str, Tensor]) -> dict[int, np.ndarray]:
    """Which tokens each step takes, (T,): taps show zeros where a token does not take part."""
    found: dict[int, np.ndarray] = {}
    for name, tensor in seen.items():
        if site_of(name) in ("resid_pre", "resid_post"):
            there = tensor[0].abs().amax(-1).gt(0).cpu().numpy()
            step = step_of(name)
            assert step is not None
            found[step] = found.get(step, False) | there
    return found


def panels_of(model: LanguageModel, taps: Sequence[TapInfo], seen: Mapping[str, Tensor]) -> list[Panel]:
    """Every panel that these taps of one text give."""
    present, schedule = presence(seen), model.schedule
    groups: dict[str, list[tuple[str, np.ndarray]]] = {}
    signals = {tap.name for tap in taps if _is_signal(tap, schedule)}
    for name, tensor in seen.items():
        site = site_of(name)
        if name in signals and site not in ("router.taking",):
            rows = _rows(name, tensor, schedule, present)
            groups.setdefault(_TOGETHER.get(site, site), []).extend(rows)
    neutral = {signal.pattern: signal.neutral for signal in signals_of(model)}
    found: list[Panel] = []
    for site, rows in groups.items():
        taken = {*_COMPUTED, *(panel.name for panel in found)}
        found.append(_panel(site, rows, _neutral_of(site, list(seen), neutral), taken))
    extra = [_depth(model, seen, schedule), _experts(seen, schedule), _updates(seen, schedule, present)]
    found += [panel for panel in extra if panel is not None]
    return sorted(found, key=lambda panel: panel.name != "depth")


def _rows(
    name: str, tensor: Tensor, schedule: Schedule, present: Mapping[int, np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    """Rows of a tap: label and (T,) values, NaN where the step does not take a token."""
    step, site = step_of(name), site_of(name)
    values = tensor[0].double().cpu().numpy()
    if name.startswith(_PER_LAYER) and values.ndim > 1 and values.shape[-1] == len(schedule):
        values = values.mean(1) if values.ndim == 3 else values
        return [(label_of(schedule, i), values[:, i]) for i in range(len(schedule))]
    if values.ndim == 2:
        values = values.mean(1)
    where = "all layers" if name.startswith(_PER_LAYER) else "at the start"
    if step is None:
        return [(where, values)]
    there = present.get(step)
    if there is not None:
        values = np.where(~there & ((values == 0) | (site == "router.gate")), np.nan, values)
    more = f", {_POOLED[site]}" if site in _TOGETHER else ""
    return [(label_of(schedule, step) + more, values)]


def _neutral_of(site: str, names: Sequence[str], known: Mapping[str, float]) -> float | None:
    mine = [name for name in names if site_of(name) == site or _TOGETHER.get(site_of(name)) == site]
    for name in mine:
        for pattern, value in known.items():
            if fnmatchcase(name, pattern):
                return value
    return None


def _panel(
    site: str, rows: Sequence[tuple[str, np.ndarray]], neutral: float | None, taken: Collection[str] = ()
) -> Panel:
    """The panel of a site; its name is the site's last word unless that is `taken`."""
    word = site.rsplit(".", 1)[-1]
    plain = word if not site.startswith("paths.") else site.removeprefix("paths.").replace(".", " ")
    plain = site.replace(".", " ") if plain in taken else plain
    look = _LOOKS.get(site, _Look(plain.replace("_", " ").capitalize(), "level" if "packet." in site else ""))
    shown = list(rows)[:_MOST_ROWS]
    values = np.stack([row for _, row in shown])
    low, high = _scale(values, neutral) if look.low is None or look.high is None else (look.low, look.high)
    return Panel(plain, look.title, look.unit, tuple(label for label, _ in shown), values, low, high, neutral)


def _scale(values: np.ndarray, neutral: float | None) -> tuple[float, float]:
    """Ends of a colour scale: as far on both sides of a neutral value; else what there is, but for a few outliers."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (0.0, 1.0) if neutral is None else (neutral - 1, neutral + 1)
    if neutral is not None:
        span = max(float(np.quantile(np.abs(finite - neutral), _MOST)), _SMALLEST_SPAN)
        return neutral - span, neutral + span
    low, high = (float(end) for end in np.quantile(finite, (1 - _MOST, _MOST)))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _depth(model: LanguageModel, seen: Mapping[str, Tensor], schedule: Schedule) -> Panel | None:
    """How many passes each token takes; None where every token takes as many."""
    taking = [tensor[0].cpu().numpy() for name, tensor in seen.items() if site_of(name) == "router.taking"]
    if not taking:
        return None
    n_passes = 1 + max(repeat_of(schedule, i) for i in range(len(schedule)))
    depth = n_passes - len(taking) + np.sum(taking, axis=0)
    return Panel("depth", "Passes taken", "passes", ("passes",), depth[None].astype(float), 0.0, float(n_passes))


def _experts(seen: Mapping[str, Tensor], schedule: Schedule) -> Panel | None:
    """What share each expert has in the router's wish, by step."""
    labels, rows = [], []
    for name, tensor in seen.items():
        if site_of(name) == "experts.logits":
            logits_TE = tensor[0].double()
            share = logits_TE.softmax(-1).cpu().numpy()
            share[~logits_TE.ne(0).any(-1).cpu().numpy()] = np.nan
            step = step_of(name)
            assert step is not None
            labels += [f"{label_of(schedule, step)}, expert {e + 1}" for e in range(share.shape[1])]
            rows += list(share.T)
    if not rows:
        return None
    labels, rows = labels[:_MOST_ROWS], rows[:_MOST_ROWS]
    return Panel("experts", "Experts asked", "share of the router", tuple(labels), np.stack(rows), 0.0, 1.0)


def _updates(seen: Mapping[str, Tensor], schedule: Schedule, present: Mapping[int, np.ndarray]) -> Panel | None:
    """How much of the state each step made: |after − before| / |after|."""
    labels, rows = [], []
    for step, there in sorted(present.items()):
        before, after = seen.get(f"steps.{step}.resid_pre"), seen.get(f"steps.{step}.resid_post")
        if before is not None and after is not None:
            change = (after[0] - before[0]).double().norm(dim=-1) / after[0].double().norm(dim=-1).clamp(min=1e-12)
            labels.append(label_of(schedule, step))
            rows.append(np.where(there, change.cpu().numpy(), np.nan))
    if not rows:
        return None
    return Panel("update", "Made new by the step", "share of the state", tuple(labels), np.stack(rows), 0.0, 1.0)


def attention_of(seen: Mapping[str, Tensor], schedule: Schedule) -> list[Attention]:
    """Attention patterns of each step that shows them over all tokens."""
    found = []
    for name, tensor in seen.items():
        step = step_of(name)
        if step is not None and site_of(name) == "attn.pattern" and tensor.shape[-1] == tensor.shape[-2]:
            found.append(Attention(name, label_of(schedule, step), tensor[0].double().cpu().numpy()))
    return found


def joined(attention: Sequence[Attention], most: int = MOST_PAIRS) -> tuple[list[Attention], tuple[str, ...]]:
    """Attention small enough to be written: of a long text its heads as their mean, then none; a note says so."""
    if sum(one.values.size for one in attention) <= most:
        return list(attention), ()
    means = [Attention(one.name, one.label, one.values.mean(0, keepdims=True)) for one in attention]
    if sum(one.values.size for one in means) <= most:
        return means, ("A text of this length: attention is the mean of its heads.",)
    return [], ("A text of this length: attention is left out.",)


def entropy_of(attention: Sequence[Attention]) -> Panel | None:
    """How widely each token looks back, by step: the entropy of its attention, a mean over heads."""
    if not attention:
        return None
    rows = []
    for one in attention:
        share = torch.from_numpy(one.values)
        entropy = torch.special.entr(share).sum(-1).mean(0).numpy()
        rows.append(np.where(share.sum(-1).amax(0).numpy() > 0, entropy, np.nan))
    values = np.stack(rows)
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    labels = tuple(one.label for one in attention)
    return Panel("attention entropy", "Width of attention", "nats", labels, values, 0.0, high or 1.0)
