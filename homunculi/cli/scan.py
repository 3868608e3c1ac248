"""`homunculi scan`: what happens inside while a model reads, around chosen words, or when words change places."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homunculi.errors import InputError

if TYPE_CHECKING:
    from homunculi.runs.scans import Scan


def add_to(app: typer.Typer) -> None:
    app.command("scan", help="Look inside a trained model while it reads: pictures, a page, and the numbers.")(scan)


def scan(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    text: Annotated[str | None, typer.Option(help="The text that it reads.")] = None,
    instrument: Annotated[
        list[str] | None, typer.Option(help="Also measure with this one (homunculi list instruments); repeat it.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            help="Change a signal meanwhile: PATTERN=neutral:NUMBER, =scaled:NUMBER, =shuffled, =patched, "
            "REGION=silenced, depth=N; repeat it. PATTERN is of taps (homunculi taps ARCH)."
        ),
    ] = None,
    patch_text: Annotated[str | None, typer.Option(help="The other text, of as many tokens, for =patched.")] = None,
    step: Annotated[int | None, typer.Option(help="Of which checkpoint; default: the latest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is written; default: one in the run.")] = None,
    panel: Annotated[
        list[str] | None, typer.Option(help="Show this panel alone, as precision; repeat it. Default: all.")
    ] = None,
    low: Annotated[float | None, typer.Option(help="Lower end of the colours of signals with a neutral value.")] = None,
    high: Annotated[float | None, typer.Option(help="Upper end of these colours.")] = None,
    like: Annotated[Path | None, typer.Option(help="JSON of another scan, for the same colour scales.")] = None,
    around: Annotated[str | None, typer.Option(help="Words, as in but,however: the average around each.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Where the words are looked for; default: the run's own.")] = None,
    texts: Annotated[int, typer.Option(min=6, help="How many texts are read for --around.")] = 200,
    swap: Annotated[
        list[str] | None, typer.Option(help="SENTENCE, or SENTENCE | SWAPPED | PARAPHRASE; repeat it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    events = around is not None or bool(swap)
    if (text is None) == (not events):
        raise InputError("scan: give --text, or --around WORDS and --swap SENTENCE")
    if events and (instrument or patch_text or like or panel or low is not None or high is not None):
        raise InputError("scan: --around and --swap take --change, --step, --corpus, --texts and --out")
    changes = tuple(change or ())
    if text is not None:
        found = _scan(run, step, text, changes, patch_text, instrument or [])
        found = _shown(found, panel or [], like, (low, high))
        asked = (text, changes, patch_text, instrument, panel, like and str(like), low, high, found.step)
        summary = _write_scan(found, _folder(run, out, text, asked))
    else:
        words = [word.strip() for word in (around or "").split(",") if word.strip()]
        about: dict[str, Any] = {"words": words, "corpus": corpus, "texts": texts, "swap": swap or []}
        folder = _folder(run, out, " ".join([*words, *(swap or [])]), (about, changes, step))
        summary = _events(run, step, changes, about, folder)
    _print(summary, as_json)


def _scan(
    run: Path, step: int | None, text: str, changes: tuple[str, ...], patch_text: str | None, instruments: list[str]
) -> Scan:
    from homunculi.experiments.scan import open_run_for_scan, scan

    model, tokenizer, name, at = open_run_for_scan(run, step)
    known = {"run": name, "step": at}
    return scan(model, tokenizer, text, changes=changes, patch_text=patch_text, instruments=instruments, known=known)


def _shown(found: Scan, panels: list[str], like: Path | None, ends: tuple[float | None, float | None]) -> Scan:
    """The panels that are asked for, with the colour scales that are."""
    from homunculi.runs.scans import read_scan, scaled_like, scaled_to, with_panels

    found = with_panels(found, panels)
    found = scaled_like(found, read_scan(like)) if like is not None else found
    return found if ends == (None, None) else scaled_to(found, *ends)


def _folder(run: Path, out: Path | None, words: str, asked: Any) -> Path:
    """Where files go: the folder that was given, or one of the run, named by the words, for all that was asked."""
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower())[:28].strip("-") or "scan"
    key = hashlib.sha256(repr(asked).encode("utf-8", "replace")).hexdigest()[:8]
    folder = out or run / "scans" / f"{slug}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another folder with --out") from None
    return folder


def _write_scan(found: Scan, folder: Path) -> dict[str, Any]:
    from homunculi.files import write_atomic
    from homunculi.report.scan import render
    from homunculi.runs.scans import write_scan

    write_scan(folder / "scan.json", found)
    write_atomic(folder / "scan.html", render(found))
    files = {"json": str(folder / "scan.json"), "html": str(folder / "scan.html")}
    surprisals = [token.surprisal for token in found.tokens if token.surprisal is not None]
    return {
        "run": found.run,
        "step": found.step,
        "tokens": len(found.tokens),
        "surprisal": sum(surprisals) / len(surprisals) if surprisals else None,
        "panels": [panel.name for panel in found.panels],
        "instruments": [one["instrument"] for one in found.measures],
        "changes": list(found.changes),
        "notes": list(found.notes),
        "files": files | _figures(folder / "scan", lambda figures: figures.draw_scan(found)),
    }


def _figures(stem: Path, draw: Callable[[Any], dict[str, bytes]]) -> dict[str, str]:
    """PNG and SVG, where there is something to draw them with."""
    from homunculi.files import write_atomic
    from homunculi.interop import figures

    try:
        drawn = draw(figures)
    except InputError as error:
        print(f"homunculi: no PNG and no SVG: {error}", file=sys.stderr)
        return {}
    for kind, data in drawn.items():
        write_atomic(stem.with_suffix(f".{kind}"), data)
    return {kind: str(stem.with_suffix(f".{kind}")) for kind in drawn}


def _events(
    run: Path, step: int | None, changes: tuple[str, ...], asked: dict[str, Any], folder: Path
) -> dict[str, Any]:
    from homunculi.experiments.events import around
    from homunculi.experiments.orders import compare_orders, read_pair
    from homunculi.experiments.scan import open_run_for_scan, tracks_of
    from homunculi.files import write_atomic, write_json
    from homunculi.report.events import render

    pairs = [read_pair(one) for one in asked["swap"]]
    model, tokenizer, name, at = open_run_for_scan(run, step)

    def read(text: str) -> Any:
        return tracks_of(model, tokenizer, text, changes)

    about = {"run": name, "step": at, "words": asked["words"], "changes": list(changes)}
    average = None
    if asked["words"]:
        about["corpus"], documents = _documents(run, asked["corpus"], asked["texts"], model, tokenizer)
        average = around(read, tokenizer, documents, asked["words"]).to_json()
    orders = compare_orders(read, pairs) if pairs else None
    write_json(folder / "events.json", {"format": 1} | about | {"average": average, "orders": orders})
    write_atomic(folder / "events.html", render(about, average, orders))
    files = {"json": str(folder / "events.json"), "html": str(folder / "events.html")}
    if average is not None:
        files |= _figures(folder / "events", lambda figures: _event_figure(figures, about, average))
    found = [] if average is None else [n for n, p in zip(average["names"], average["p"], strict=True) if p <= 0.05]
    counted = {key: average[key] for key in ("n_events", "n_texts")} if average else {}
    return about | counted | {"responding": found, "orders": orders and orders["mean"], "files": files}


def _event_figure(figures: Any, about: dict[str, Any], average: dict[str, Any]) -> dict[str, bytes]:
    """The dozen signals with the clearest response."""
    order = sorted(range(len(average["p"])), key=lambda i: -average["t"][i])[:12]
    panels = {
        f"{average['names'][i]}   p {average['p'][i]:.2g}": {
            "difference": (average["difference"][i], average["low"][i], average["high"][i])
        }
        for i in order
    }
    title = f"Around {', '.join(about['words'])}: what signals do beyond matched words ({about['run']})"
    return figures.draw_lines(title, average["lags"], panels)


def _documents(run: Path, corpus: str | None, most: int, model: Any, tokenizer: Any) -> tuple[str, list[str]]:
    """Texts, cut to what the model reads, held-out ones first."""
    from itertools import chain, islice

    from homunculi.runs.directory import open_run
    from homunculi.text.config import TextConfig
    from homunculi.text.corpora import open_corpus

    name = corpus or str((open_run(run).info().get("config") or {}).get("corpus") or "")
    if not name or "@" in name:
        raise InputError(f"--corpus: {name or 'the run names none'}; name one corpus")
    opened = open_corpus(name, TextConfig())
    found = []
    for text in islice(chain(opened.documents("val"), opened.documents("train")), most):
        ids = tokenizer.encode(text)[: model.config.max_seq_len - 1]
        if ids:
            found.append(tokenizer.decode(ids).rstrip("\ufffd"))
    return name, found


def _print(summary: dict[str, Any], as_json: bool) -> None:
    from homunculi.cli.terminal import print_result

    if as_json:
        print_result(json.dumps(summary))
        return
    lines = []
    if "surprisal" in summary:
        mean = summary["surprisal"]
        said = "nothing that the model said is a number" if mean is None else f"{mean:.3f} nats a token in the mean"
        lines.append(f"{summary['tokens']} tokens, {said}")
    if "n_events" in summary:
        found = ", ".join(summary["responding"]) or "none"
        lines.append(f"{summary['n_events']} events in {summary['n_texts']} texts; signals that respond: {found}")
    lines += [*summary.get("notes", []), *summary["files"].values()]
    print_result("\n".join(lines))
