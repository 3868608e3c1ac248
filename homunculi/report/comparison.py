"""The report of a comparison: one self-contained HTML file from comparison.json, in any state of the comparison."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from homunculi.files import write_atomic
from homunculi.report import differences, sections
from homunculi.report.comparison_record import (
    RECORD,
    Record,
    last_of,
    mean,
    objects,
    part,
    points_of,
    read_record,
    side_of,
    spanned,
    text_of,
    training_flops_of,
)
from homunculi.report.markup import Html, element, folded, join, pairs, section, table
from homunculi.report.numbers import brief, decimals, duration, exact, number
from homunculi.report.snapshot import Snapshot
from homunculi.report.style import POLICY, SCRIPT, STYLE
from homunculi.runs import clock
from homunculi.runs.difference import flatten

FORMAT = 1
REPORT = "report.html"
_BUDGET = (
    ("parameters", "parameters stored", exact),
    ("non_embedding_parameters", "of these, without token tables", exact),
    ("executed_parameters", "parameters executed for a token", exact),
    ("flops_per_token", "FLOPs a token, forward", brief),
    ("cache_bytes_per_token", "bytes of cache a token", exact),
)
_TEXT, _SHORT, _LISTED = 6000, 60, 12

# What this page needs beyond the style of all reports. A band is a faint line that is filled instead of drawn.
MORE_STYLE = """
.verdicts { list-style: none; padding: 0; margin: 1rem 0; max-width: 56rem; }
.verdicts li { border-left: 5px solid; background: var(--card); padding: .5rem .8rem; margin: .45rem 0; }
li.c0 { border-color: var(--c0); } li.c1 { border-color: var(--c1); } li.c7 { border-color: var(--c7); }
#by-log:checked ~ .figures .over-log, #by-late:checked ~ .figures .over-late { display: block; }
.banded g.faint { stroke-width: .6; opacity: 1; fill-opacity: .2; stroke-opacity: .2; }
.banded g.c0 { fill: var(--c0); } .banded g.c1 { fill: var(--c1); } .banded g.c2 { fill: var(--c2); }
.banded g.c3 { fill: var(--c3); } .banded g.c4 { fill: var(--c4); } .banded g.c5 { fill: var(--c5); }
.banded g.c6 { fill: var(--c6); } .banded g.line, .banded g.marked { fill: none; }
.banded g.faint.c7 { fill: none; stroke: var(--soft); stroke-width: 1.2; stroke-opacity: 1; }
.pair.banded > figure { max-width: 36rem; }
.curves > label { margin-bottom: .35rem; }
.strips { display: grid; grid-template-columns: minmax(9rem, 17rem) 1fr; gap: .1rem 1.2rem; align-items: center; }
.what { line-height: 1.3; min-width: 0; padding: .3rem 0; overflow-wrap: anywhere; }
.strip { display: none; width: 100%; height: auto; overflow: visible; }
.strip.big { display: block; }
.strip text { font-size: 10.5px; fill: var(--soft); }
.strip .grid { stroke: var(--line); } .strip .axis, .strip .zero { stroke: var(--soft); }
.strip .zero { stroke-width: 1.4; stroke-dasharray: 3 2; }
.strip .bar { stroke-width: 2.2; fill: none; }
.strip .mean { stroke-width: 1.6; fill: var(--ground); }
.strip .dot { stroke-width: 1.2; fill: none; opacity: .85; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 0 1.2rem; }
.beside > div { min-width: 0; }
h4 { font-size: .92rem; margin: .5rem 0 .2rem; overflow-wrap: anywhere; }
td .tag { max-width: 18rem; overflow-wrap: anywhere; }
th[scope=row] { position: sticky; left: 0; background: var(--ground); }
@media (max-width: 900px) {
  .strips { grid-template-columns: 1fr; }
  .strips > div:empty { display: none; }
  .scroll table { width: max-content; }
  th[scope=row] { min-width: 7rem; max-width: 9rem; overflow-wrap: anywhere; }
}
@media (max-width: 640px) {
  .strip { display: block; }
  .strip.big { display: none; }
  .strip text { font-size: 13px; }
}
"""


def write_comparison_report(folder: Path) -> Path:
    """Write FOLDER/report.html, whole or not at all, and return its path. Works in any state of the comparison.

    Raises:
        InputError: the folder has no comparison.json, or it is not a JSON object.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    text = render_comparison(read_record(folder))
    write_atomic(folder / REPORT, text)
    return folder / REPORT


def render_comparison(record: Record) -> str:
    """The page of a comparison. Its links are relative to the comparison's folder."""
    levels = [(name, value) for name, value in map(record.level_of, record.baselines) if value is not None]
    content = [
        ("results", "Results", results(record)),
        ("curves", "Learning curves", differences.learning_curves(record.curves(), levels, record.unit)),
        ("differences", "Paired differences", _differences(record)),
        ("budget", "Budgets", budgets(record)),
        ("configuration", "What differs between the sides", _configurations(record)),
        ("tuning", "Learning rates tried", tuning(record)),
        ("samples", "What they say", samples(record)),
        ("certificates", "Certificates", certificates(record)),
        ("runs", "Runs", runs(record)),
        ("provenance", "Where it comes from, and how to run it again", origin(record)),
    ]
    there = [(key, title, body) for key, title, body in content if body]
    links = [element("a", title, href=f"#{key}") for key, title, _ in there]
    nav = element("nav", *links, aria_label="parts of this page")
    moment = element("footer", f"Written {clock.written_out(clock.now())} from {RECORD}.")
    return _document(_title(record), join([*_top(record), nav, *(section(*one) for one in there), moment]))


def _document(title: str, body: Html) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title} · homunculi comparison"),
        element("style", Html(STYLE + MORE_STYLE)),
    )
    page = element("html", head, element("body", element("main", body), element("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _title(record: Record) -> str:
    names = [name[:_SHORT] for name in record.sides]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return " · ".join(names[:4]) + more or "no sides"


def _top(record: Record) -> Iterator[Html | None]:
    """Names, state, what a reader must not miss, and the verdicts."""
    match = _words(record.raw.get("match"))
    n_seeds = f"{len(record.seeds)} seed" + ("" if len(record.seeds) == 1 else "s")
    equal = f"matched in {', '.join(match)}" if match else "budgets not matched"
    yield element("p", "homunculi · report of a comparison", class_="kicker")
    yield element("h1", _title(record))
    yield element("p", " · ".join([equal, n_seeds, record.unit]), class_="under")
    yield _state(record)
    if record.raw.get("format", FORMAT) != FORMAT:
        words = f"{RECORD} has format {text_of(record.raw['format'])}, this page knows {FORMAT}: parts may be missing."
        yield element("p", words, class_="alert")
    for name, reason in record.refused.items():
        who = element("strong", element("bdi", name))
        yield element("p", "Refused, not ranked: ", who, f": {reason[:_TEXT]}", class_="alert")
    for run in record.failed:
        words = f", seed {text_of(run.get('seed'))}, did not end: {text_of(run.get('state'))}, "
        who = element("strong", element("bdi", side_of(run)))
        yield element("p", who, words, text_of(run.get("reason")), class_="alert")
    found = differences.verdicts(record.pairs, record.mean_of)
    yield found or element("p", element("strong", "No verdict yet."))
    yield _streams(record)


def _state(record: Record) -> Html:
    missing, there = record.missing(), f"{len(record.runs):,} run" + ("" if len(record.runs) == 1 else "s")
    if record.runs and not missing:
        return element("p", element("span", "complete", class_="state state-done"), f": {there}")
    listed = [f"{name}, seed {', '.join(seeds[:_LISTED])}" for name, seeds in missing.items()]
    names = "; ".join(listed[:_LISTED]) + ("; …" if len(listed) > _LISTED else "")
    more = f" so far, {sum(map(len, missing.values())):,} to come: {names}" if missing else ""
    return element("p", element("span", "unfinished", class_="state state-running"), f": {there}{more}")


def _streams(record: Record) -> Html | None:
    """Whether all sides saw the same batches, as far as runs of one length can tell."""
    seen: dict[tuple[str, float], list[str]] = {}
    for run in record.runs:
        if run.get("stream") and (found := points_of(run, record.key)):
            seen.setdefault((str(run.get("seed")), found[-1][0]), []).append(str(run["stream"]))
    if other := sorted({seed for (seed, _), streams in seen.items() if len(set(streams)) > 1}):
        words = f"Not the same batches: the sides saw different ones with seed {', '.join(other[:_LISTED])}."
        return element("p", words, class_="alert")
    if any(len(streams) > 1 for streams in seen.values()):
        return element("p", "With each seed all sides saw the same batches: their hashes agree.", class_="note")
    return None


def _differences(record: Record) -> Html | None:
    found = record.pairs
    if not found:
        return None
    return join([differences.dots(found), differences.numbers_of(found), differences.over_training(found)])


def results(record: Record) -> Html | None:
    """The end of training, best mean first; what is refused comes last, and counted models after all."""
    rows: list[tuple[Any, ...]] = []
    means = {name: record.mean_of(name) for name in record.sides}
    refused = {name: name not in record.ranked for name in record.sides}
    for name in sorted(means, key=lambda name: (refused[name], means[name] is None, means[name] or 0.0)):
        ends = record.ends_of(name, record.key)
        tag = element("small", "refused, not ranked", class_="tag") if refused[name] else None
        spread = spanned(decimals(min(ends)), decimals(max(ends))) if len(ends) > 1 else "–"
        n = f"{len(ends)}\u00a0of\u00a0{max(len(record.seeds), len(ends))}"
        loss = decimals(mean(record.ends_of(name, "val_loss")))
        title = join([element("bdi", name), tag])
        rows.append(
            (title, decimals(means[name]), spread, loss, n, brief(record.tokens_of(name)), _speed(record, name))
        )
    for line in record.baselines:
        name, value = record.level_of(line)
        title = join([element("bdi", name), element("small", "counted, not trained", class_="tag")])
        rows.append((title, decimals(value), "–", decimals(line.get("val_loss")), "–", "–", "–"))
    head = (f"{record.unit}, mean", "lowest to highest seed", "nats per token, mean", "seeds", "tokens", "tokens/s")
    return table(("", *head), rows) if rows else None


def _speed(record: Record, name: str) -> str:
    values = [value for run in record.runs_of(name) if (value := number(run.get("tokens_per_s"))) is not None]
    return brief(mean(values))


def budgets(record: Record) -> Html | None:
    """What each side costs and how it was trained, a column a side."""
    sides = record.sides
    if not sides:
        return None
    rows: list[tuple[Any, ...]] = [
        (label, *(form(part(side, "budget").get(key)) for side in sides.values())) for key, label, form in _BUDGET
    ]
    tokens = {name: record.tokens_of(name) for name in sides}
    rows.append(("tokens trained on", *map(exact, tokens.values())))
    rows.append(("FLOPs of training", *(brief(_training_flops(side, tokens[name])) for name, side in sides.items())))
    rows.append(("learning rate", *(text_of(side.get("lr")) for side in sides.values())))
    ratios = [part(side, "ratios") for side in sides.values()]
    for key in dict.fromkeys(key for one in ratios for key in one):
        values = [number(one.get(key)) for one in ratios]
        rows.append((f"{key} against the first side", *("–" if value is None else f"×{value:.4g}" for value in values)))
    if any(part(side, "changes") for side in sides.values()):
        rows.append(("changed to match", *(_lines(part(side, "changes")) for side in sides.values())))
    return table(("", *(element("bdi", name) for name in sides)), rows)


def _training_flops(side: Mapping[str, Any], tokens: float | None) -> float | None:
    flops = training_flops_of(side)
    return None if flops is None or tokens is None else flops * tokens


def _lines(values: Mapping[str, Any]) -> Html | str:
    return join(element("div", f"{key}={text_of(value)}") for key, value in values.items()) or "–"


def _configurations(record: Record) -> Html | None:
    snapshots = [_snapshot(name, side) for name, side in record.sides.items() if part(side, "config")]
    return sections.difference(snapshots) if len(snapshots) > 1 else None


def _snapshot(name: str, side: Mapping[str, Any]) -> Snapshot:
    """A side as the sections of a run's report read it."""
    return Snapshot(Path(), side, {}, "", [], [], [], (), name)


def tuning(record: Record) -> Html | None:
    """A row a learning rate, a column a side; the rate that each side was then trained with is marked."""
    tried: dict[str, dict[float, list[str]]] = {}
    for one in objects(record.raw.get("tuning")):
        if (rate := number(one.get("lr"))) is not None:
            tried.setdefault(side_of(one), {}).setdefault(rate, []).append(decimals(one.get(record.key)))
    if not tried:
        return None
    chosen = {name: number(record.sides.get(name, {}).get("lr")) for name in tried}
    rows = [
        (f"{rate:.6g}", *(_rate(tried[name].get(rate), rate == chosen[name]) for name in tried))
        for rate in sorted({rate for rates in tried.values() for rate in rates})
    ]
    edges = [name for name, rates in tried.items() if len(rates) > 1 and chosen[name] in (min(rates), max(rates))]
    words = f"{record.unit.capitalize()} at the end of a tuning run."
    if edges:
        words += f" Chosen at the edge of what was tried, so a better rate may lie beyond: {', '.join(edges)}."
    head = ("learning rate", *(element("bdi", name) for name in tried))
    return join([table(head, rows), element("p", words, class_="note")])


def _rate(values: list[str] | None, won: bool) -> Html | str:
    text = ", ".join(values) if values else "–"
    return element("strong", f"{text}\u00a0✓\u00a0chosen", class_="yes") if won and values else text


def samples(record: Record) -> Html | None:
    """What the sides say with the same seed, side by side; the first seed open, the others folded."""
    blocks: list[Html] = []
    for seed in record.seeds:
        said = [
            (name, str(run["sample"]))
            for name in record.sides
            for run in record.runs_of(name)
            if str(run.get("seed")) == seed and run.get("sample")
        ]
        cards = [
            element("div", element("h4", element("bdi", name)), element("pre", text[:_TEXT])) for name, text in said
        ]
        if cards:
            body = element("div", *cards, class_="beside")
            blocks.append(folded(f"seed {seed}", body) if blocks else join([element("h3", f"seed {seed}"), body]))
    return join(blocks) if blocks else None


def certificates(record: Record) -> Html | None:
    """Each side's certificate, folded under one line that says how it went."""
    blocks = []
    for name, side in record.sides.items():
        found, body = part(side, "certificate"), sections.certificate(_snapshot(name, side))
        if body is None:
            blocks.append(element("p", element("bdi", name), ": not certified yet"))
            continue
        checks = objects(found.get("checks"))
        passed = sum(check.get("passed") is True for check in checks)
        causal = {"True": "✓ causal", "False": "✗ not causal"}.get(str(found.get("causal")), "causality not known")
        words = f": {causal}, {passed} of {len(checks)} checks passed"
        blocks.append(folded(join([element("bdi", name), words]), body))
    return join(blocks) if blocks else None


def runs(record: Record) -> Html | None:
    """Every run with a link to its own report, and those that are missing."""
    head = ("side and seed", record.unit, "tokens", "tokens/s", "time", "hash of batches", "report")
    rows: list[tuple[Any, ...]] = []
    for run in record.runs:
        done = points_of(run, record.key)
        title = join([element("bdi", side_of(run)), f", seed {text_of(run.get('seed'))}"])
        facts = (brief(done[-1][0] if done else None), brief(run.get("tokens_per_s")), duration(run.get("seconds")))
        stream = element("code", str(run.get("stream") or "–")[:12])
        rows.append((title, decimals(last_of(run, record.key)), *facts, stream, _link(run.get("run"))))
    for run in record.failed:
        title = join([element("bdi", side_of(run)), f", seed {text_of(run.get('seed'))}"])
        rows.append((title, text_of(run.get("state")), *["–"] * 4, _link(run.get("run"))))
    for name, seeds in record.missing().items():
        rows += [(join([element("bdi", name), f", seed {seed}"]), "to come", *["–"] * 5) for seed in seeds]
    return folded(f"All {len(rows):,} runs", table(head, rows)) if rows else None


def _link(folder: Any) -> Html | str:
    """To the report of a run inside the comparison's folder; plain text where the path leads elsewhere."""
    if not isinstance(folder, str) or not folder:
        return "–"
    if folder.startswith("/") or "\\" in folder or ".." in folder.split("/"):
        return folder[:_TEXT]
    return element("a", folder, href="./" + quote(f"{folder}/{REPORT}", safe="/", errors="replace"))


def origin(record: Record) -> Html:
    """Commands that run it again, then versions and machine."""
    created = record.raw.get("created")
    rows = [("created", clock.written_out(clock.seconds_of(created)) or text_of(created))]
    rows += [(key, text_of(value)) for key, value in flatten(part(record.raw, "data"))]
    known = {key: value for key, value in part(record.raw, "provenance").items() if key != "command"}
    rows += [(key.removeprefix("versions."), text_of(value)) for key, value in flatten(known)]
    rows += [("seeds", ", ".join(record.seeds) or "–"), ("format", text_of(record.raw.get("format")))]
    single = "\n".join(_training(name, side, record.seeds[:1]) for name, side in record.sides.items())
    parts = [
        element("p", "The whole comparison:"),
        element("pre", _command(record)),
        folded("Each side alone", element("pre", single)) if single else None,
        pairs(rows),
    ]
    return join(one for one in parts if one)


def _command(record: Record) -> str:
    """As the provenance keeps it, or else from the recipes and what was assigned to all of them."""
    kept = part(record.raw, "provenance").get("command")
    if isinstance(kept, str) and kept:
        return kept
    assigned = [_words(side.get("assignments")) for side in record.sides.values()]
    common = [word for word in assigned[0] if all(word in words for words in assigned)] if assigned else []
    recipes = [str(side.get("recipe", name)) for name, side in record.sides.items()]
    match = _words(record.raw.get("match"))
    options = [*(["--match", ",".join(match)] if match else []), "--seeds", str(len(record.seeds))]
    return shlex.join(["homunculi", "compare", *recipes, *common, *options])


def _training(name: str, side: Mapping[str, Any], seeds: list[str]) -> str:
    """The command that trains one side by itself."""
    words = [*_words(side.get("assignments")), *_words(side.get("added"))]
    given = dict(word.partition("=")[::2] for word in words)
    given |= {key: text_of(value) for key, value in part(side, "changes").items()}
    given |= {"lr": text_of(side["lr"])} if number(side.get("lr")) is not None else {}
    given |= {"seed": seeds[0]} if seeds else {}
    recipe = str(side.get("recipe", name))
    return shlex.join(["homunculi", "train", recipe, *(f"{key}={value}" for key, value in given.items())])


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
