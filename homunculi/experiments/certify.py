"""Certification: does a language model compute what a causal language model may compute?

Any module or plain function from token ids (B, T) to logits (B, T, V) can be asked; checks that cannot apply to it are
left out. Causality is asked of a private float64 copy with perturbed parameters (see `subject`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from homunculi.core.budget import Budget
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.causality import (
    Suspects,
    check_gradients,
    check_prefixes,
    check_token_by_token,
    check_token_edits,
    lengths_in_order,
    token_edits,
)
from homunculi.experiments.certificate import Certificate, Check, LeakMap
from homunculi.experiments.invariance import (
    check_batch,
    check_cached_decoding,
    check_calls,
    check_determinism,
    check_neutral_start,
    check_state,
)
from homunculi.experiments.leaks import SETTLED_SECONDS, LeakSearch
from homunculi.experiments.margins import check_hard_choices
from homunculi.experiments.subject import Subject, first_line, prepared, same_random_state
from homunculi.experiments.trial import check_random_tokens
from homunculi.models import build, get

__all__ = ["Certificate", "Check", "certify", "certify_architecture", "certify_longer"]

SECONDS = 30.0  # what a certificate should take without the trial
TRIAL_SECONDS = 45.0  # what training in the random-token trial may take
WHOLE_SECONDS = 90.0  # after which the trial, which comes last, is held to LEAST_TRIAL_SECONDS
LEAST_TRIAL_SECONDS = 10.0
PREFIX_SECONDS = 4.0  # what prefixes may take in each mode
LONGER_SECONDS = 2.0  # the same, and what cuts may take that reading has settled, in rows longer than certified before
READING_SECONDS = 18.0
MOST_EDITS = 10
SLOW = 0.2  # seconds of a forward from which on less is asked
SHORT = 128  # tokens at which a slow model is asked for all but causality
DEFAULT_VOCAB = 64
DEFAULT_CONTEXT = 128

_CAUSALITY = {"token_edits", "gradients", "prefix_consistency", "every_cut", "random_tokens"}
_CAUSALITY_IN_TRAINING = {
    "token_edits_training",
    "gradients_training",
    "every_cut_training",
    "random_tokens_training",
}


@dataclass(frozen=True, slots=True)
class _Effort:
    """How much is asked, by how long a forward takes. Causality is always asked at the full context.

    Attributes:
        seconds: of a forward.
        n_edits: token edits in each mode.
        n_cuts: places where gradients are looked at.
        context: tokens of all other checks.
    """

    seconds: float
    n_edits: int
    n_cuts: int
    context: int

    @classmethod
    def affordable(cls, seconds: float, context: int) -> _Effort:
        slow = seconds > SLOW
        other_checks = 20 if slow else 35  # what they cost, in evaluating forwards of one row
        edits = int((SECONDS / max(seconds, 1e-6) - other_checks) / 2)
        return cls(seconds, min(MOST_EDITS, max(4, edits)), 1 if slow else 2, min(context, SHORT) if slow else context)


def certify(
    model: Callable[..., Any], vocab_size: int, context: int, *, seed: int = 0, trial_seconds: float = TRIAL_SECONDS
) -> Certificate:
    """Certify a module or function from token ids (B, T) to logits (B, T, V).

    A difference counts from 1e-9 on, relative to the logits, where float64 is possible throughout; from 1e-4 where
    float32 appears; from 3e-2 below that. `causal` is the verdict of token edits, gradients, prefixes,
    cuts and the random-token trial in evaluation mode, `causal_in_training` that of token edits, gradients and cuts,
    with equal random draws, and of the trial in training mode (a plain function has one mode and no trial). Where a cut
    shows a look ahead, `leaks` says who sees what. The model, its mode and torch's random generators are left as they
    were.

    Caches are checked where the model has ``new_cache`` and takes ``cache=`` as `LanguageModel` says. An architecture
    whose modulation starts neutral declares it by a method ``neutral_twin()``: a model with the same weights that
    leaves all modulation out. Freshly built, both must give the same bits.

    Args:
        model: may return an object with ``.logits``. A module is copied; a function is taken as it is.
        vocab_size: ids are drawn below it.
        context: tokens of the sequences that are tried.
        seed: of tokens, perturbation and random draws.
        trial_seconds: what training in the random-token trial may take; 0 leaves the trial out.

    Raises:
        InputError: vocabulary or context below 2, or the model does not turn such ids into logits.
    """
    for name, value in (("vocab_size", vocab_size), ("context", context)):
        if value < 2:
            raise InputError(f"certify: {name}={value}, needs at least 2")
    model = getattr(model, "_orig_mod", model)  # what a compiled module was made of
    generator = torch.Generator().manual_seed(seed)
    rows_BT = torch.randint(vocab_size, (3, context), generator=generator)
    notes: list[str] = []
    began = time.perf_counter()
    with prepared(model, rows_BT[:1], seed, notes) as subject:
        session = _Session(subject, rows_BT, vocab_size, generator, notes)
        with _quickest_threads(subject, rows_BT[:1]):
            checks = tuple(session.run())
        checks += tuple(session.trial(model, _left(trial_seconds, began)))
    passed = {check.name: check.passed for check in checks}
    causal = all(passed[name] for name in _CAUSALITY if name in passed)
    in_training = [passed[name] for name in _CAUSALITY_IN_TRAINING if name in passed]
    trains = bool(in_training) and all(in_training) if subject.module is not None else causal
    return Certificate(causal, trains, checks, _budget(model, context), tuple(notes), tuple(session.leaks))


def certify_longer(
    model: Callable[..., Any], vocab_size: int, context: int, known: int, *, seed: int = 0
) -> Certificate:
    """Ask again for causality alone, in little time, at rows longer than those of a certificate that is there already.

    Prefixes of the row, reading it token by token where there is a cache, then the cuts that time allows, in both
    modes; where reading agrees with the full forward at every position, all pairs are shown. The names of the checks
    say the context.

    Args:
        model, vocab_size, context, seed: as in `certify`.
        known: the context of the other certificate.

    Raises:
        InputError: as `certify`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_BT = torch.randint(vocab_size, (1, context), generator=generator)
    notes: list[str] = []
    with prepared(model, rows_BT, seed, notes) as subject, _quickest_threads(subject, rows_BT):
        session = _Session(subject, rows_BT, vocab_size, generator, notes)
        checks = tuple(session.run_longer(known))
    causal = all(check.passed for check in checks if not check.name.endswith("_training"))
    named = tuple(replace(check, name=f"{check.name}_at_{context}") for check in checks)
    said = tuple(f"at {context} tokens: {note}" for note in notes)
    return Certificate(causal, all(c.passed for c in checks), named, notes=said, leaks=tuple(session.leaks))


def _left(seconds: float, began: float) -> float:
    """Of the seconds asked for, those that keep the whole certificate short."""
    return min(seconds, max(LEAST_TRIAL_SECONDS, WHOLE_SECONDS - (time.perf_counter() - began)))


@contextmanager
def _quickest_threads(subject: Subject, row_BT: Tensor) -> Iterator[None]:
    """One thread or all of them: where others compute on the same cores, several only wait for each other."""
    before = torch.get_num_threads()
    seconds = {1: 0.0}
    for n in {1, before} if before > 1 else ():
        torch.set_num_threads(n)
        seconds[n] = min(subject.seconds(row_BT) for _ in range(2))
    torch.set_num_threads(min(seconds, key=lambda n: seconds[n]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(slots=True)
class _Session:
    """The checks of one subject, in order."""

    subject: Subject
    rows_BT: Tensor
    vocab_size: int
    generator: torch.Generator
    notes: list[str]
    leaks: list[LeakMap] = field(default_factory=list)

    def run(self) -> Iterator[Check]:
        subject, context = self.subject, self.rows_BT.shape[1]
        effort = _Effort.affordable(subject.seconds(self.rows_BT[:1]), context)
        rows_BT = self.rows_BT[:, : effort.context]
        if effort.context < context:
            self.notes.append(f"a slow model: all but causality checked at {effort.context} tokens")
        yield from self._edits_and_gradients(effort)
        deterministic = self._try("determinism", lambda: check_determinism(subject, rows_BT[:1]))
        yield from deterministic
        yield from self._try("call_independence", lambda: check_calls(subject, rows_BT))
        if subject.module is not None:
            yield from self._try("state_unchanged", lambda: check_state(subject, rows_BT[:1]))
        suspects = Suspects()
        if all(check.passed for check in deterministic):
            yield from self._across_shapes(rows_BT, suspects)
        else:
            self.notes.append("draws at random in evaluation: prefixes, batches and caches cannot be compared")
        yield from self._every_cut(effort.seconds, suspects)
        if hasattr(subject.module, "neutral_twin"):
            yield from self._try("neutral_start", self._neutral_start)
        yield from self._try("hard_choices", lambda: check_hard_choices(subject, rows_BT[:1]))

    def run_longer(self, known: int) -> Iterator[Check]:
        """Causality at this context, the lengths just above the known one among the first to be asked."""
        subject, row_BT, context = self.subject, self.rows_BT, self.rows_BT.shape[1]
        suspects = Suspects()
        deterministic = self._try("determinism", lambda: check_determinism(subject, row_BT))
        yield from (check for check in deterministic if not check.passed)
        if all(check.passed for check in deterministic):
            near = [context // 2 + 1, context - 1, known + 1, 2 * known]
            lengths = [n for n in dict.fromkeys([*near, *lengths_in_order(context, self.generator)]) if n < context]
            ask = partial(check_prefixes, subject, row_BT, lengths, suspects, LONGER_SECONDS)
            yield from self._try("prefix_consistency", ask)
            if hasattr(subject.module, "new_cache") and not getattr(subject.module, "cacheless", ""):
                read = partial(check_token_by_token, subject, row_BT, suspects, READING_SECONDS)
                yield from self._try("token_by_token", read)
        yield from self._every_cut(subject.seconds(row_BT), suspects, LONGER_SECONDS)

    def trial(self, model: Any, seconds: float) -> list[Check]:
        """The random-token trial of the model as it was given."""
        if self.subject.module is None or seconds <= 0:
            reason = "a plain function cannot be trained" if self.subject.module is None else "no time was given"
            self.notes.append(f"random-token trial left out: {reason}")
            return []
        logits_BTV = self.subject.logits(self.rows_BT[:1])
        ask = partial(check_random_tokens, model, logits_BTV, self.rows_BT.shape[1], notes=self.notes)
        try:
            return ask(seed=self.subject.seed, seconds=seconds)
        except Exception as error:  # whatever training meets, too little memory included, says nothing about a look
            self.notes.append(f"random-token trial left out: {first_line(error)}")
            return []

    def _edits_and_gradients(self, effort: _Effort) -> Iterator[Check]:
        subject, ids_BT, generator = self.subject, self.rows_BT[:1], self.generator
        context = ids_BT.shape[1]
        edits = token_edits(ids_BT, self.vocab_size, effort.n_edits, generator)
        cuts = sorted({min(context // 2 + 1, context - 1), 1}, reverse=True)[: effort.n_cuts]
        for name, training in (("", False), ("_training", True))[: 2 if subject.module is not None else 1]:
            yield from self._try(
                f"token_edits{name}", partial(check_token_edits, subject, ids_BT, edits, training=training)
            )
            yield from self._try(
                f"gradients{name}", partial(check_gradients, subject, ids_BT, cuts, generator, training=training)
            )

    def _across_shapes(self, rows_BT: Tensor, suspects: Suspects) -> Iterator[Check]:
        """What compares forwards of different shapes, whose random draws would differ."""
        subject, row_BT = self.subject, self.rows_BT[:1]
        lengths = lengths_in_order(row_BT.shape[1], self.generator)
        ask = partial(check_prefixes, subject, row_BT, lengths, suspects)
        yield from self._try("prefix_consistency", partial(ask, seconds=PREFIX_SECONDS))
        yield from self._try("batch_independence", lambda: check_batch(subject, rows_BT))
        if cacheless := getattr(subject.module, "cacheless", ""):
            self.notes.append(f"cached decoding left out: {cacheless}")
        elif hasattr(subject.module, "new_cache"):
            yield from self._try("cached_decoding", lambda: check_cached_decoding(subject, rows_BT))
            read = partial(check_token_by_token, subject, row_BT, suspects, READING_SECONDS)
            yield from self._try("token_by_token", read)

    def _every_cut(self, row_seconds: float, suspects: Suspects, settled: float = SETTLED_SECONDS) -> Iterator[Check]:
        """All pairs of positions, those first that other comparisons hint at; `settled` as in `LeakSearch`."""
        row_BT, generator = self.rows_BT[:1], self.generator
        search = LeakSearch(
            self.subject, row_BT, self.vocab_size, generator, row_seconds, self.notes, settled, self.leaks
        )
        yield from self._try("every_cut", partial(search.check, suspects, training=False))
        if self.subject.module is not None:
            lengths = lengths_in_order(row_BT.shape[1], generator)
            suspects = search.suspects_in_training(lengths, min(PREFIX_SECONDS, settled))
            yield from self._try("every_cut_training", partial(search.check, suspects, training=True))

    def _try(self, name: str, check: Callable[[], Check | list[Check] | None]) -> list[Check]:
        """What a check finds. An error fails it for a model of ours; another model's check is left out, with a note."""
        try:
            found = check()
        except Exception as error:
            if isinstance(self.subject.module, LanguageModel):
                return [Check.of(name, float("inf"), self.subject.limit, first_line(error))]
            self.notes.append(f"{name} left out: {first_line(error)}")
            return []
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    def _neutral_start(self) -> Check:
        """Of a model built anew: training moves modulation away from neutral."""
        given: Any = self.subject.module
        fresh = type(given)(given.config)
        model, twin = (Subject(m, m, wide=False, seed=self.subject.seed) for m in (fresh, fresh.neutral_twin()))
        return check_neutral_start(model, twin, self.rows_BT[:1])


def _budget(model: Any, context: int) -> Budget | None:
    return model.budget(context) if isinstance(model, LanguageModel) else None


def certify_architecture(
    name: str, *, seed: int = 0, trial_seconds: float = TRIAL_SECONDS, **config: Any
) -> Certificate:
    """Certify a freshly built model of a registered architecture, at the full context of its configuration.

    Args:
        name: the architecture.
        seed: as in `certify`, and of the weights.
        trial_seconds: as in `certify`.
        config: fields of its configuration. Left out, `vocab_size` is 64 and `max_seq_len` is 128.

    Raises:
        InputError: unknown architecture or field, or a value out of range.
    """
    known = {field.name for field in fields(get(name).config_type)}
    small = {"vocab_size": DEFAULT_VOCAB, "max_seq_len": DEFAULT_CONTEXT}
    config = {field: value for field, value in small.items() if field in known} | config
    with same_random_state():
        torch.manual_seed(seed)
        model = build(name, **config)
    vocab_size = getattr(model.config, "vocab_size", DEFAULT_VOCAB)
    context = getattr(model.config, "max_seq_len", DEFAULT_CONTEXT)
    return certify(model, vocab_size, context, seed=seed, trial_seconds=trial_seconds)
