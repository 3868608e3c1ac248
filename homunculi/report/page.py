"""The report: one self-contained HTML file. It asks nothing of a network and needs no script to be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.report.acquisition import acquisition, acquisitions
from homunculi.report.figures import curves
from homunculi.report.inside import inside
from homunculi.report.markup import Html, element, folded, join, section
from homunculi.report.numbers import bytes_of
from homunculi.report.snapshot import Snapshot, take_all
from homunculi.report.style import POLICY, SCRIPT, STYLE
from homunculi.runs import clock
from homunculi.runs.directory import RunDirectory

from . import sections

REPORT = "report.html"


def write_report(run: RunDirectory) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path. Works in any state of the run.

    Raises:
        OSError: the folder cannot be written.
    """
    path = run.path / REPORT
    write_atomic(path, render([run], beside=run.path))
    return path


def render(runs: Sequence[RunDirectory], beside: Path | None = None) -> str:
    """The page of one run, or of several with their curves on the same axes.

    Args:
        beside: the folder that the page will lie in; links to data files are relative to it. Without it, the page of
            one run links as if it lay in its run, and the page of several has no links.

    Raises:
        InputError: `runs` is empty.
    """
    if not runs:
        raise InputError("report: name at least one run")
    taken = take_all(runs)
    if beside is None and len(taken) == 1:
        beside = taken[0].path
    body = _one(taken[0], beside) if len(taken) == 1 else _several(taken, beside)
    title = taken[0].name if len(taken) == 1 else f"{len(taken)} runs"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title} · homunculi report"),
        element("style", Html(STYLE)),
    )
    page = element("html", head, element("body", element("main", body), element("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _one(run: Snapshot, beside: Path | None) -> Html:
    done, planned = run.steps()
    under = " · ".join(part for part in (run.architecture, run.folder if run.folder != run.name else "") if part)
    progress = f" at step {done:,}" + (f" of {planned:,}" if planned else "") if done else ", no step yet"
    more = f": {situation}" if (situation := run.situation()) else None
    parts = [
        ("curves", "Curves", _curves([run])),
        ("samples", "What it says", sections.samples(run)),
        ("order", "What came when", acquisition(run)),
        ("inside", "What happens inside", inside(run)),
        ("certificate", "Certificate", sections.certificate(run)),
        ("size", "Size and cost", sections.budget(run)),
        ("configuration", "Configuration", sections.configuration(run)),
        ("provenance", "Where it comes from", sections.origin(run)),
        ("events", "What happened", sections.events(run)),
        ("files", "Files", files(run, beside)),
    ]
    head = [
        element("p", "homunculi · report of a run", class_="kicker"),
        element("h1", element("bdi", run.name)),
        element("p", under, class_="under") if under else None,
        element("p", element("span", run.state, class_=f"state state-{run.state}"), progress, more),
        *sections.alerts(run),
        sections.tiles(run),
    ]
    return _assembled(head, parts)


def _several(runs: Sequence[Snapshot], beside: Path | None) -> Html:
    parts = [
        ("curves", "Curves", _curves(runs)),
        ("difference", "What differs", sections.difference(runs)),
        ("size", "Size and cost", sections.budgets(runs)),
        ("samples", "What they say", _each(runs, sections.samples)),
        ("order", "What came when", acquisitions(runs)),
        ("inside", "What happens inside", _each(runs, inside)),
        ("certificates", "Certificates", _each(runs, sections.certificate)),
        ("configuration", "Configurations", _each(runs, sections.configuration)),
        ("provenance", "Where they come from", _each(runs, sections.origin)),
        ("events", "What happened", _each(runs, sections.events)),
        ("files", "Files", _each(runs, lambda run: files(run, beside))),
    ]
    head = [
        element("p", "homunculi · report of several runs", class_="kicker"),
        element("h1", f"{len(runs)} runs"),
        sections.overview(runs),
    ]
    for run in runs:
        if found := list(sections.alerts(run)):
            head.append(element("div", element("h3", element("bdi", run.label)), *found))
    return _assembled(head, parts)


def _assembled(head: Sequence[Html | None], parts: Sequence[tuple[str, str, Html | None]]) -> Html:
    """The head, a line of links to the parts there are, the parts, and when this was written."""
    there = [(key, title, content) for key, title, content in parts if content]
    links = element(
        "nav", *(element("a", title, href=f"#{key}") for key, title, _ in there), aria_label="parts of this page"
    )
    moment = element("footer", f"Written {clock.written_out(clock.now())} from the files of the run.")
    return join([*head, links, *(section(key, title, content) for key, title, content in there), moment])


def _curves(runs: Sequence[Snapshot]) -> Html:
    return curves(runs) if any(run.metrics for run in runs) else element("p", "Nothing logged yet.")


def _each(runs: Sequence[Snapshot], part: Callable[[Snapshot], Html | None]) -> Html | None:
    """The same part of every run that has it, one below the other, folded."""
    found = [(run.label, content) for run in runs if (content := part(run))]
    return join(folded(element("bdi", name), content) for name, content in found) if found else None


def files(run: Snapshot, beside: Path | None) -> Html | None:
    """The files of the run, linked from a page in folder `beside`."""
    try:
        found = sorted(entry for entry in run.path.iterdir() if not entry.name.startswith(".") and entry.name != REPORT)
        rows = [(entry, entry.is_dir()) for entry in found]
    except OSError:
        return None
    items = []
    for entry, is_folder in rows:
        label = f"{entry.name}/" if is_folder else entry.name
        href = None if beside is None else _relative(entry, beside)
        size = None if is_folder else f" – {bytes_of(_size(entry))}"
        items.append(element("li", element("a", label, href=href) if href else element("span", label), size))
    return element("ul", *items, class_="files") if items else None


def _relative(target: Path, folder: Path) -> str | None:
    """A relative link that no name can turn into another address; None where there is no relative path."""
    try:
        path = os.path.relpath(target.absolute(), folder.absolute())
    except ValueError:
        return None
    return "./" + quote(path.replace(os.sep, "/"), safe="/", errors="surrogateescape")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
