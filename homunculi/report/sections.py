"""The parts of the page that are words and tables: from a run to markup, or to None where there is nothing to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from homunculi.report.leaks import leak_maps
from homunculi.report.markup import Html, element, folded, join, pairs, table
from homunculi.report.numbers import brief, decimals, duration, exact, number
from homunculi.report.snapshot import Snapshot
from homunculi.runs.clock import seconds_of, written_out
from homunculi.runs.difference import ABSENT, flatten, varying

_TEXT = 6000
_MANY_FIELDS = 6
_OPEN_STEPS, _MOST_STEPS, _MOST_EVENTS = 1, 200, 400
_LOUD = frozenset(
    {
        "warning",
        "failed",
        "diverged",
        "signal",
        "resumed",
        "compile",
        "fallback",
        "repeated_differently",
        "error",
        "instrument_failed",
    }
)
_BUDGET = (
    ("parameters", "parameters stored", exact),
    ("non_embedding_parameters", "of these, without token tables", exact),
    ("embedding_parameters", "of these, token tables", exact),
    ("executed_parameters", "parameters executed for a token", exact),
    ("flops_per_token", "FLOPs a token, forward", brief),
    ("cache_bytes_per_token", "bytes of cache a token", exact),
)


def tiles(run: Snapshot) -> Html:
    """The figures a reader looks for first."""
    done, planned = run.steps()
    tokens, flops, seconds = run.total("tokens"), run.total("flops"), run.total("seconds")
    rows = [
        ("Validation loss", _at(run.last("val/loss")), _best(run, "val/loss", "nats per token")),
        ("Bits per byte", _at(run.last("val/bpb")), _best(run, "val/bpb", "on validation text")),
        ("Training loss", _at(run.last("train/loss")), "nats per token, last logged"),
        ("Steps", f"{done:,}", f"of {planned:,}" if planned else ""),
        ("Tokens seen", brief(tokens), f"{brief(flops)} FLOPs" if flops else ""),
        ("Training time", duration(seconds), _speed(tokens, seconds)),
        ("Parameters", brief(run.part("budget").get("parameters")), "stored"),
    ]
    cells = (element("div", element("dt", a), element("dd", b, element("small", c) if c else None)) for a, b, c in rows)
    return element("dl", *cells, class_="tiles")


def overview(runs: Sequence[Snapshot]) -> Html:
    """Several runs in one table."""
    head = ("run", "architecture", "state", "step", "tokens", "train loss", "val loss", "bits a byte", "time", "size")
    rows = [
        (
            element("bdi", run.label),
            run.architecture or "–",
            element("span", run.state, class_=f"state state-{run.state}"),
            f"{run.steps()[0]:,}",
            brief(run.total("tokens")),
            _at(run.last("train/loss")),
            _at(run.last("val/loss")),
            _at(run.last("val/bpb")),
            duration(run.total("seconds")),
            brief(run.part("budget").get("parameters")),
        )
        for run in runs
    ]
    return table(head, rows)


def alerts(run: Snapshot) -> Iterator[Html]:
    """What a reader must not miss: damage, values that were not finite, no causality, changed signals."""
    for note in run.notes:
        yield element("p", note, class_="alert")
    broken = run.broken()
    if broken:
        steps = sorted({step for step, _ in broken})
        keys = ", ".join(sorted({key for _, key in broken})[:6])
        more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
        yield element("p", f"Not finite at step {steps[0]:,}{more}: {keys}.", class_="alert")
    if run.part("certificate").get("causal") is False:
        yield element("p", "Not causal: its losses must not be ranked beside those of causal models.", class_="alert")
    train = run.part("config").get("train")
    changed = train.get("interventions") if isinstance(train, Mapping) else None
    if isinstance(changed, list) and changed:
        words = f"Signals were changed in training and in every evaluation: {', '.join(map(str, changed))[:_TEXT]}."
        yield element("p", words, class_="alert")


def samples(run: Snapshot) -> Html | None:
    """What the model said, latest step first; the prompt in bold."""
    by_step: dict[Any, list[dict[str, Any]]] = {}
    for sample in run.samples:
        by_step.setdefault(_step(sample), []).append(sample)
    if not by_step:
        return None
    steps = sorted(by_step, key=lambda step: (step is not None, step or 0), reverse=True)
    blocks = []
    for place, step in enumerate(steps[:_MOST_STEPS]):
        title = "no step" if step is None else f"step {step:,}"
        said = join(_sample(sample) for sample in by_step[step])
        blocks.append(element("div", element("h3", title), said) if place < _OPEN_STEPS else folded(title, said))
    if len(steps) > _MOST_STEPS:
        blocks.append(
            element("p", f"Samples of {len(steps) - _MOST_STEPS:,} earlier steps are in samples.jsonl.", class_="note")
        )
    return join(blocks)


def _sample(sample: Mapping[str, Any]) -> Html:
    prompt, text = str(sample.get("prompt") or ""), str(sample.get("text") or "")
    rest = text.removeprefix(prompt)
    more = element("i", f" … {len(rest) - _TEXT:,} more characters in samples.jsonl") if len(rest) > _TEXT else None
    how = [f"{key} {sample[key]}" for key in ("temperature", "seed") if sample.get(key) is not None]
    line = element("p", ", ".join(how), class_="note") if how else None
    return join([line, element("pre", element("b", prompt[:_TEXT]), rest[:_TEXT], more)])


def certificate(run: Snapshot) -> Html | None:
    """What was checked before anything was believed."""
    found = run.part("certificate")
    if not found:
        return None
    labels = {"causal": "causal in evaluation and generation", "causal_in_training": "causal in training"}
    verdicts = [(label, _passed(found[key], "yes", "no")) for key, label in labels.items() if key in found]
    listed = found.get("checks")
    checks = [check for check in listed if isinstance(check, Mapping)] if isinstance(listed, list) else []
    rows = [
        (
            check.get("name", "–"),
            join([_passed(check.get("passed"), "passed", "failed"), _why(check)]),
            _leaf(check.get("value")),
            _leaf(check.get("limit")),
        )
        for check in checks
    ]
    checked = table(("check", "result", "value", "limit"), rows) if rows else None
    return join([pairs(verdicts), leak_maps(found), checked])


def _why(check: Mapping[str, Any]) -> Html | None:
    """What a failed check says."""
    failed, note = check.get("passed") is False, check.get("note")
    return element("small", str(note)[:_TEXT], class_="tag") if failed and note else None


def configuration(run: Snapshot) -> Html | None:
    """Every field, nested ones under their own heading; marked where the command line changed the recipe's value."""
    config = run.part("config")
    if not config:
        return None
    changed = _overridden(run.info.get("overrides"))
    plain = {key: value for key, value in config.items() if not (isinstance(value, Mapping) and value)}
    parts = [_fields(plain, "", changed)] if plain else []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            parts += [element("h3", key), _fields(value, f"{key}.", changed)]
    if changed:
        parts.insert(0, element("p", "Marked: changed from the recipe's default.", class_="note"))
    return join(parts)


def _fields(values: Mapping[str, Any], prefix: str, changed: frozenset[str]) -> Html:
    rows = []
    for key, value in flatten(values):
        mark = prefix + key in changed
        cell = element("dd", element("code", _leaf(value)), element("small", "changed", class_="tag") if mark else None)
        rows.append(element("div", element("dt", key), cell, class_="changed" if mark else None))
    return element("dl", *rows, class_="facts")


def _overridden(overrides: Any) -> frozenset[str]:
    """Dotted names of overridden fields, given as `{"model.n_heads": 4}` or as `["model.n_heads=4"]`."""
    if isinstance(overrides, Mapping):
        return frozenset(str(key) for key, _ in flatten(overrides))
    return frozenset(str(item).split("=")[0] for item in overrides) if isinstance(overrides, list) else frozenset()


def budget(run: Snapshot) -> Html | None:
    found = run.part("budget")
    rows = [(label, form(found[key])) for key, label, form in _BUDGET if key in found]
    known = {key for key, _, _ in _BUDGET}
    rows += [(key, _leaf(value)) for key, value in flatten(found) if key not in known]
    return pairs(rows) if rows else None


def budgets(runs: Sequence[Snapshot]) -> Html | None:
    """Several runs side by side."""
    rows = [
        (label, *(form(run.part("budget").get(key)) for run in runs))
        for key, label, form in _BUDGET
        if any(key in run.part("budget") for run in runs)
    ]
    return table(("", *(element("bdi", run.label) for run in runs)), rows) if rows else None


def difference(runs: Sequence[Snapshot]) -> Html:
    """Fields of configuration, data and provenance that are not the same in all runs."""
    found = varying([run.info for run in runs])
    if not found:
        return element("p", "Configuration, data and provenance are the same.")
    head = ("", *(element("bdi", run.label) for run in runs))
    shared = [(key, *map(_leaf, values)) for key, values in found if ABSENT not in values]
    rest = [
        (key, *("–" if value == ABSENT else _leaf(value) for value in values))
        for key, values in found
        if ABSENT in values
    ]
    if not shared or len(rest) < _MANY_FIELDS:
        return table(head, shared + rest)
    return join([table(head, shared), folded(f"{len(rest)} fields that only some of them have", table(head, rest))])


def origin(run: Snapshot) -> Html:
    """Where the run comes from: code, data, seeds, machine."""
    info = run.info
    rows: list[tuple[Any, Any]] = [(key, _leaf(info[key])) for key in ("recipe", "command", "id") if info.get(key)]
    rows += [("created", written_out(seconds_of(info.get("created"))) or "–")]
    rows += [(key.replace("_", " "), _leaf(value)) for key, value in flatten(run.part("seeds"))]
    code = dict(run.part("provenance"))
    if commit := code.pop("git_commit", None):
        dirty = code.pop("git_dirty", False)
        rows.append(("code version", join([element("code", commit), " with local changes" if dirty else None])))
    rows += [(key.removeprefix("versions.").replace("_", " "), _leaf(value)) for key, value in flatten(code)]
    hashes = [event["stream_hash"] for event in run.events if event.get("stream_hash")]
    rows += [("hash of the batch stream", element("code", hashes[-1]))] if hashes else []
    known = {key: run.status.get(key) for key in ("host", "pid", "exit_code")}
    rows += [(key.replace("_", " "), str(value)) for key, value in known.items() if value is not None]
    parts = [pairs(rows)]
    for title, key in (("Data", "data"), ("Plan", "plan")):
        if run.part(key):
            parts += [element("h3", title), pairs((name, _leaf(value)) for name, value in flatten(run.part(key)))]
    return join(parts)


def events(run: Snapshot) -> Html | None:
    """What happened: the loud ones in full, then the whole list on request."""
    if not run.events:
        return None
    counts = Counter(str(event.get("kind") or "?") for event in run.events)
    total = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common(12))
    loud = [event for event in run.events if str(event.get("kind")) in _LOUD][-_MOST_EVENTS:]
    kept = run.events[-_MOST_EVENTS:]
    first = f"the last {len(kept):,} of {len(run.events):,}" if len(kept) < len(run.events) else f"all {len(kept):,}"
    return join(
        [
            element("p", total, class_="under"),
            _events(loud) if loud else element("p", "No warnings, resumes or fallbacks."),
            folded(f"Events, {first}", _events(kept)),
        ]
    )


def _events(listed: Sequence[Mapping[str, Any]]) -> Html:
    rows = []
    for event in listed:
        rest = {key: value for key, value in event.items() if key not in ("time", "step", "kind")}
        detail = "; ".join(f"{key}: {_leaf(value)}" for key, value in flatten(rest))
        step = _step(event)
        moment = written_out(seconds_of(event.get("time")))
        rows.append((event.get("kind") or "?", "–" if step is None else f"{step:,}", moment or "–", detail[:_TEXT]))
    return table(("kind", "step", "time", "details"), rows)


def _leaf(value: Any) -> str:
    """A value as the configuration would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 100_000:
        return exact(value) if number(value) is not None else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_leaf(item) for item in value)[:_TEXT] if value else "empty"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_leaf(inner)}" for key, inner in value.items()) if value else "empty"
    return str(value)[:_TEXT] if value != "" else '""'


def _passed(value: Any, yes: str, no: str) -> Html:
    if not isinstance(value, bool):
        return element("span", "not known")
    return element("span", f"✓ {yes}" if value else f"✗ {no}", class_="yes" if value else "no")


def _step(line: Mapping[str, Any]) -> int | None:
    step = line.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _at(found: tuple[int, float] | None) -> str:
    return "–" if found is None else decimals(found[1])


def _best(run: Snapshot, key: str, unit: str) -> str:
    last, low = run.last(key), run.lowest(key)
    if last is None or low is None:
        return "not evaluated yet"
    if low[0] == last[0]:
        return f"{unit}, the lowest so far, step {last[0]:,}"
    if decimals(low[1]) == decimals(last[1]):
        return f"{unit}, step {last[0]:,}"
    return f"{unit}, step {last[0]:,}; lowest {decimals(low[1])} at {low[0]:,}"


def _speed(tokens: float | None, seconds: float | None) -> str:
    return f"{brief(tokens / seconds)} tokens/s" if tokens and seconds else ""
