"""What the audit asks of one family, in the process of that family.

Besides the certificate: whether reading through the model's cache gives the logits of the full forward, and where that
fails, whether its own way to generate does. A family whose code knows no float64 is asked in float32, and once more in
an equal form that does, if it has one.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.experiments.causality import differences
from homunculi.experiments.certify import certify
from homunculi.experiments.subject import LIMITS, Subject, first_line, prepared
from homunculi.report.markup import inert

FORKS = sys.platform == "linux"  # elsewhere, forking a process that has loaded torch is not safe
READY = "ready"
COLUMNS = ("causal", "cached_equals_full", "batch_independent", "prefix_consistent")

_CHECKS = {"batch_independent": "batch_independence", "prefix_consistent": "prefix_consistency"}
_NOT_OF_CAUSALITY = {
    "determinism",
    "call_independence",
    "state_unchanged",
    "batch_independence",
    "cached_decoding",
    "ragged_decoding",
    "neutral_start",
    "hard_choices",
}
_LEFT_OUT = " left out: "
_TRAINING = "_training"
_REASON = re.compile(r" \([^()]{20,}\)")
_EXACT = LIMITS[torch.float64]
_SHORT_PROMPT = 5
_WORDS = 110  # characters that a note takes over from an error or a certificate
_GRACE = 10.0  # seconds after which a process ends itself that should have been ended
_GIB = 2**30


@dataclass(slots=True)
class Answers:
    """What one model answered.

    Attributes:
        verdicts: by column, and `causal_in_training`; None where a check could not apply.
        limit: the largest relative difference that counted as rounding.
        notes: what was seen, what was left out and why.
    """

    verdicts: dict[str, bool | None]
    limit: float
    notes: list[str] = field(default_factory=list)

    def joined(self, other: Answers) -> Answers:
        """Both: a column holds where each that could be asked says so."""
        both = {name: _both(self.verdicts[name], other.verdicts[name]) for name in self.verdicts}
        return Answers(both, min(self.limit, other.limit), [*other.notes, *self.notes])


def _both(a: bool | None, b: bool | None) -> bool | None:
    return b if a is None else a if b is None else a and b


def examine(family: Any) -> dict[str, Any]:
    """All that is said about one family, as JSON values.

    Args:
        family: with the attributes of `interop.families.Family`.
    """
    answers = ask(family.model, family.vocab_size, family.context)
    notes = list(family.notes)
    exact = _exactly(family) if answers.limit > _EXACT else None
    if exact is not None:
        answers = answers.joined(exact)
        answers.notes = [note for note in answers.notes if not note.startswith("cannot run in float64")]
        notes.append("asked in float32, and in float64 with experts one by one")
    notes += [text for column, text in family.causes.items() if answers.verdicts.get(column) is False]
    if answers.verdicts["causal"] is False and family.alternative is not None:
        notes.append(_with_another_setting(family, *family.alternative))
    note = _joined([*notes, *_grouped(answers.notes)])
    parameters = sum(p.numel() for p in family.model.parameters())
    return {**answers.verdicts, "note": note, "made": family.made, "parameters": parameters}


def _exactly(family: Any) -> Answers | None:
    """The answers of the family's form for float64, if it has one that works."""
    try:
        answers = ask(family.exact(), family.vocab_size, family.context) if family.exact is not None else None
    except Exception:  # any: it is other people's code; then float32 must do, and a note of the certificate says so
        return None
    return answers if answers is not None and answers.limit <= _EXACT else None


def ask(model: nn.Module, vocab_size: int, context: int) -> Answers:
    """The certificate of a model, and whether reading through its cache equals the full forward."""
    certificate = certify(model, vocab_size, context, trial_seconds=0).to_json()
    checks = {check["name"]: check for check in certificate["checks"]}
    limits = [check["limit"] for name, check in checks.items() if _of_causality(name) and not name.endswith(_TRAINING)]
    verdicts: dict[str, bool | None] = {"causal": certificate["causal"] if limits else None, "cached_equals_full": None}
    verdicts |= {column: checks[name]["passed"] if name in checks else None for column, name in _CHECKS.items()}
    verdicts["causal_in_training"] = certificate["causal_in_training"]
    notes = _seen(checks, certificate["causal"])
    if checks.get("determinism", {"passed": True})["passed"]:
        verdicts["cached_equals_full"], said = _cached(model, vocab_size, context, generates=certificate["causal"])
        notes += said
    said = [note for note in certificate.get("notes", ()) if not note.startswith("random-token trial")]
    notes += [note if _LEFT_OUT in note else shorten(note, _WORDS, placeholder=" …") for note in said]
    return Answers(verdicts, max(limits, default=_EXACT), notes)


def _of_causality(check: str) -> bool:
    return check.removesuffix(_TRAINING) not in _NOT_OF_CAUSALITY


def _seen(checks: Mapping[str, Mapping[str, Any]], causal: bool) -> list[str]:
    """What failed: the first look ahead, one in training only where evaluation has none, and whatever else."""
    failed = {name: check for name, check in checks.items() if not check["passed"]}
    looks = {name: check for name, check in failed.items() if _of_causality(name)}
    if not causal:
        looks = {name: check for name, check in looks.items() if not name.endswith(_TRAINING)}
    others = [name for name in failed if not _of_causality(name)]
    notes = [f"{name.replace('_', ' ')}: {_told(failed[name])}" for name in others]
    if not looks:
        return notes
    first = next(iter(looks))
    return [("in training, " if first.endswith(_TRAINING) else "") + _told(looks[first]), *notes]


def _told(check: Mapping[str, Any]) -> str:
    return f"{check.get('note') or 'failed'} ({check['value']:.1g})"


def _cached(model: nn.Module, vocab_size: int, context: int, *, generates: bool) -> tuple[bool | None, list[str]]:
    """Whether a prompt and then single tokens give the logits of the full forward, after a short prompt and a long one.

    Where they do not, the model's own way to generate is asked as well, if it is causal.
    """
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(vocab_size, (1, context), generator=generator)
    with prepared(model, ids_BT, 0, []) as subject:
        try:
            verdict, notes = _reads_on(subject, ids_BT)
        except Exception as error:  # any: it is other people's code
            verdict, notes = None, [f"a call with its cache fails ({_brief(error)})"]
        remembers = verdict is not None or bool(notes)
        if verdict is not True and remembers and generates and hasattr(subject.module, "generate"):
            equal, said = _generates(subject, ids_BT[:, : context // 3])
            verdict = equal if verdict is None else verdict
            notes.append(said)
        remarks = getattr(subject.module, "remarks", [])
    if not remembers or (remarks and not generates):
        return None, ["keeps no cache"]
    return verdict, [*notes, *remarks] if generates else []


def _reads_on(subject: Subject, ids_BT: Tensor) -> tuple[bool | None, list[str]]:
    """Whether logits that are read piece by piece are those of the whole; None where nothing is remembered."""
    whole_BTV = subject.logits(ids_BT)
    for n_prompt in (_SHORT_PROMPT, ids_BT.shape[1] // 2 + 1):
        memory: dict[str, Any] = {}
        pieces = [subject.logits(ids_BT[:, :n_prompt], memory=memory)]
        if not memory:
            return None, []
        pieces += [subject.logits(ids_BT[:, t : t + 1], memory=memory) for t in range(n_prompt, ids_BT.shape[1])]
        apart_T = differences(whole_BTV, torch.cat(pieces, dim=1))[0]
        if apart_T.max() > subject.limit:
            first = int((apart_T > subject.limit).int().argmax())
            said = f"after a prompt of {n_prompt}, cached logits differ from position {first} on ({apart_T.max():.1g})"
            return False, [said]
    return True, []


def _generates(subject: Subject, prompt_BT: Tensor) -> tuple[bool | None, str]:
    """Whether the logits by which the model generates are those of a full forward over what it wrote."""
    module: Any = subject.module
    try:
        with subject.types():
            ids_BT, chosen_by_BTV = module.generate(prompt_BT, prompt_BT.shape[1])
        whole_BTV = subject.logits(ids_BT)[:, prompt_BT.shape[1] - 1 : -1]
    except Exception as error:  # any: it is other people's code
        return None, f"generate() fails ({_brief(error)})"
    apart = float(differences(whole_BTV, chosen_by_BTV).max())
    equal = apart <= subject.limit
    return equal, "generate() equals the full forward" if equal else f"generate() differs too ({apart:.1g})"


def _with_another_setting(family: Any, words: str, make: Callable[[], nn.Module]) -> str:
    try:
        verdicts = ask(make(), family.vocab_size, family.context).verdicts
    except Exception as error:  # any: it is other people's code
        return f"with {words} it cannot be asked ({_brief(error)})"
    cached = {True: ", cached equals full", False: ", cached differs from full", None: ""}
    return f"with {words}: {'causal' if verdicts['causal'] else 'not causal'}{cached[verdicts['cached_equals_full']]}"


def _brief(error: Exception) -> str:
    return shorten(first_line(error), _WORDS, placeholder=" …")


def _grouped(notes: Iterable[str]) -> list[str]:
    """Notes, with the checks that were left out for one reason named together."""
    left_out: dict[str, list[str]] = {}
    others = []
    for note in notes:
        name, found, reason = note.partition(_LEFT_OUT)
        if found:
            left_out.setdefault(shorten(reason, _WORDS, placeholder=" …"), []).append(name)
        else:
            others.append(note)
    return [*others, *(f"{', '.join(dict.fromkeys(names))}{_LEFT_OUT}{reason}" for reason, names in left_out.items())]


def _joined(notes: Iterable[str]) -> str:
    """One line; a reason in brackets is given once."""
    given = set[str]()

    def once(match: re.Match[str]) -> str:
        again = match[0] in given
        given.add(match[0])
        return "" if again else match[0]

    return inert(_REASON.sub(once, "; ".join(dict.fromkeys(note for note in notes if note))))


def not_asked(note: str) -> dict[str, Any]:
    """What is said about a family that could not be asked."""
    return {**dict.fromkeys(COLUMNS), "note": inert(note)}


def main(source: str, seconds: float, memory: float) -> None:
    """Ask the families whose names come line by line, each in a process of its own; print one JSON object for each.

    What families need is loaded once, here; then a line says so. The process of a family is a fork of this one. Where
    the system cannot fork safely, this process asks one family and ends.

    Args:
        source: the module that makes families.
        seconds: after which, and a grace, a family's process ends itself.
        memory: GiB that it may allocate, where the system can hold it to that.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a family prints is no answer
    torch.set_num_threads(1)
    module = importlib.import_module(source)
    module.names()
    answers.write(f"{READY}\n")
    answers.flush()
    for line in sys.stdin:
        child = os.fork() if FORKS else 0
        if child == 0:
            faulthandler.dump_traceback_later(seconds + _GRACE, exit=True)
            _hold_memory(int(memory * _GIB))
            answers.write(json.dumps(_answer(module, line.strip(), memory)) + "\n")
            answers.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            how = f"by signal {-code}" if code < 0 else f"with {code}"
            answers.write(json.dumps(not_asked(f"its process ended {how}")) + "\n")
            answers.flush()


def _answer(module: Any, name: str, memory: float) -> dict[str, Any]:
    try:
        return examine(module.build(name))
    except Exception as error:  # any: it is other people's code, and how it fails is the answer
        if isinstance(error, MemoryError) or "t allocate memory" in str(error):
            return {**not_asked(f"needs more than {memory:g} GiB"), "reached": {"memory": memory}}
        return not_asked(_brief(error))


def _hold_memory(n_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
