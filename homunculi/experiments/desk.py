"""The desk: a process that keeps models loaded, and answers JSON lines on stdin with JSON lines on stdout.

    {"id": 1, "do": "scan", "run": PATH, "step": null, "text": "…", "changes": ["PATTERN=neutral:1.0", "depth=2"]}
    {"id": 2, "do": "sample", "run": PATH, "step": null, "text": prompt, "tokens": 60, "temperature": 0.8, "seed": 0,
     "changes": []}
    {"id": 3, "do": "signals", "run": PATH}

    {"id": 4, "do": "stop", "of": 2}

A scan and signals are answered by ``{"id": 1, "result": {…}}``, a sample by ``{"id": 2, "piece": "text"}`` as it is
written and then ``{"id": 2, "result": {"text": "…"}}``. A stop has no answer of its own: the sample that it names ends
with what is written by then, and whatever else it names is answered by an error, in the midst of it too. What goes
wrong is one line, ``{"id": 3, "error": "…"}``, and the desk goes on. A scan is that of `homunculi.runs.scans`; the
result of signals is

    {"signals": [{"pattern", "title", "neutral", "low", "high"}], "regions": [{"name", "pattern", "value"}],
     "parts": [names for NAME=silenced], "depth": [1, 2, 3] or null, "longest": tokens}

Requests are answered one after the other. Models of the last `KEPT` runs stay loaded; one whose run has other
checkpoints is loaded again. Nothing in a run is executed. Which paths may be asked for is for those to check who ask.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from homunculi.core.model import LanguageModel
from homunculi.errors import HomunculiError, InputError
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.changing import changed, depths_of, parts_of, regions_of, signals_of
from homunculi.experiments.scan import open_run_for_scan, scan
from homunculi.runs.scans import scan_to_json
from homunculi.text.tokenizers import Tokenizer
from homunculi.train.checkpoint import checkpoints

KEPT = 3
MOST_TOKENS = 4096  # of a sample
MOST_LINE = 4_000_000  # characters of a request
MOST_CHANGES = 64
MOST_STOPPED = 64
STOPPED = "stopped"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run's model, ready to read; `stamp`: of the files that it was made of, which changes when they do."""

    model: LanguageModel
    tokenizer: Tokenizer
    name: str
    step: int
    stamp: tuple[Any, ...]


class Desk:
    """Models in memory, and what is asked of them."""

    def __init__(self) -> None:
        self.loaded: OrderedDict[tuple[str, int | None], Loaded] = OrderedDict()
        self.stopped: set[int] = set()

    def stop(self, line: str) -> bool:
        """Whether a line asks for a stop, which then holds from now on. May be called from another thread."""
        try:
            asked = _object(line)
        except InputError:
            return False
        if asked.get("do") != "stop":
            return False
        if len(self.stopped) >= MOST_STOPPED:  # of requests that had come to their end by themselves
            self.stopped.clear()
        if isinstance(of := asked.get("of"), int):
            self.stopped.add(of)
        return True

    def is_stopped(self, asked: Json) -> bool:
        number = asked.get("id")
        return isinstance(number, int) and number in self.stopped

    def answer(self, line: str) -> Iterator[Json]:
        """Answers to one request, whatever it is."""
        number: Any = None
        try:
            asked = _object(line)
            number = asked.get("id")
            if self.is_stopped(asked) and asked.get("do") != "sample":
                raise InputError(STOPPED)
            work = {"scan": self._scan, "sample": self._sample, "signals": self._signals}.get(str(asked.get("do")))
            if work is None:
                raise InputError(f"do: {str(asked.get('do'))[:40]!r} is none of scan, sample, signals")
            for found in work(asked):
                yield {"id": number} | found
        except HomunculiError as error:
            yield {"id": number, "error": _one_line(str(error))}
        except Exception as error:  # one answer is lost, not the models in memory
            yield {"id": number, "error": _one_line(f"{type(error).__name__}: {error}")}
        finally:
            if isinstance(number, int):
                self.stopped.discard(number)

    def _scan(self, asked: Json) -> Iterator[Json]:
        run = self._open(asked)
        with _ended_when(lambda: self.is_stopped(asked)):
            found = scan(
                run.model,
                run.tokenizer,
                _word(asked, "text"),
                changes=_changes(asked),
                patch_text=_word(asked, "patch_text") or None,
                known={"run": run.name, "step": run.step},
            )
        yield {"result": scan_to_json(found)}

    def _signals(self, asked: Json) -> Iterator[Json]:
        model = self._open(asked).model
        with _ended_when(lambda: self.is_stopped(asked)):
            found = {
                "signals": [asdict(one) for one in signals_of(model)],
                "regions": [asdict(one) for one in regions_of(model)],
                "parts": parts_of(model),
                "depth": depths_of(model) or None,
                "longest": model.config.max_seq_len,
            }
        yield {"result": found}

    def _sample(self, asked: Json) -> Iterator[Json]:
        run = self._open(asked)
        n_tokens = int(_number(asked, "tokens", 60, 1, MOST_TOKENS))
        seed = int(_number(asked, "seed", 0, 0, 2**63 - 1))
        sampling = Sampling(temperature=_number(asked, "temperature", 0.8, 0.0, 100.0), seed=seed)
        prompt = [run.tokenizer.eot_id, *run.tokenizer.encode(_word(asked, "text"))]
        with changed(run.model, _changes(asked)):
            drawn = generate(run.model, [prompt], n_tokens, sampling)
            wanted = (int(token) for token in takewhile(lambda _: not self.is_stopped(asked), drawn))
            text = ""
            for piece in pieces_of(run.tokenizer, wanted):
                text += piece
                yield {"piece": piece}
        yield {"result": {"text": text}}

    def _open(self, asked: Json) -> Loaded:
        """The run that is asked for, loaded once while its checkpoints stay what they are."""
        path, step = _word(asked, "run"), asked.get("step")
        if not path or (step is not None and (isinstance(step, bool) or not isinstance(step, int))):
            raise InputError("run and step: a path, and a number of updates or null")
        key = (path, step)
        stamp = _stamp(Path(path), step)
        known = self.loaded.pop(key, None)
        if known is None or known.stamp != stamp:
            model, tokenizer, name, at = open_run_for_scan(path, step)
            known = Loaded(model, tokenizer, name, at, stamp)
        self.loaded[key] = known
        while len(self.loaded) > KEPT:
            self.loaded.popitem(last=False)
        return known


@contextmanager
def _ended_when(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Inside the block no module begins to compute any more once `is_stopped` says so: a scan is hundreds of them."""

    def look(*_: Any) -> None:
        if is_stopped():
            raise InputError(STOPPED)

    listening = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        listening.remove()


def _stamp(run: Path, step: int | None) -> tuple[Any, ...]:
    """Of the run and of its checkpoints, or of the one of `step`: another after training anew under the same name."""
    folder = run / "checkpoints"
    present = checkpoints(folder) if step is None else [step]
    return tuple((one, _changed_at(folder / f"step-{one:08d}")) for one in present)


def _changed_at(path: Path) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_ino


def pieces_of(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text of tokens as they come; a character comes when its last byte does, and the text ends where it says so."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if token == tokenizer.eot_id:
            break
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _object(line: str) -> Json:
    if len(line) > MOST_LINE:
        raise InputError(f"a request of {len(line):,} characters; at most {MOST_LINE:,}")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("a request is one JSON object on one line") from None
    if not isinstance(value, dict):
        raise InputError("a request is one JSON object on one line")
    return value


def _word(asked: Json, name: str) -> str:
    value = asked.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name}: a text is expected")
    return value or ""


def _changes(asked: Json) -> list[str]:
    value = asked.get("changes") or []
    if not isinstance(value, list) or len(value) > MOST_CHANGES or not all(isinstance(one, str) for one in value):
        raise InputError(f"changes: a list of at most {MOST_CHANGES} texts is expected")
    return value


def _number(asked: Json, name: str, default: float, low: float, high: float) -> float:
    value = asked.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{name}: a number from {low:g} to {high:g} is expected")
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())[:2000]


def serve(requests: Iterable[str], out: TextIO, answer: Callable[[str], Iterator[Json]]) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        if line.strip():
            for found in answer(line):
                out.write(_written(found) + "\n")
                out.flush()


def _written(answer: Json) -> str:
    """An answer as a line; one with a number that JSON does not have becomes an error."""
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps({"id": answer.get("id"), "error": "the answer holds numbers that are not finite"})


def read_ahead(lines: Iterable[str], stop: Callable[[str], bool]) -> Iterator[str]:
    """Lines in their order, read on a thread of their own; those that `stop` takes are not among them."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in lines:
                if not stop(line):
                    waiting.put(line)
        finally:
            waiting.put(None)

    threading.Thread(target=read, name="requests", daemon=True).start()
    while (line := waiting.get()) is not None:
        yield line


def main() -> None:
    """Answer stdin on stdout. Whatever else is printed goes to stderr."""
    out = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    for stream in (sys.stdin, out):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    desk = Desk()
    try:
        serve(read_ahead(iter(sys.stdin.readline, ""), desk.stop), out, desk.answer)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(0)  # past the thread that waits for a line


if __name__ == "__main__":
    main()
