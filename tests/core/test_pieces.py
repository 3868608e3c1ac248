"""Pieces of decoding steps and their recordings, which a stand-in for CUDA graphs plays on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.pieces import Pieces, Recording
from homunculi.evals.generation import Sampling, generate
from homunculi.models import build
from homunculi.parts.routers import RoutingOptions


class FakeRecorder:
    """As a CUDA graph: recording changes nothing, a replay fills what was returned.

    The piece runs once to make the result; what it did to the state is undone, and what it returned is spoilt unless it
    was there before.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self.state, self.n_recorded, self.n_replayed = state, 0, 0
        self.made: list[Tensor] = []

    def watch(self, piece: Callable[[], Any]) -> tuple[Any, bool]:
        return piece(), True

    def record(self, piece: Callable[[], Any]) -> Recording:
        kept = [(t, t.clone()) for t in self.state()]
        result = piece()
        for tensor, before in kept:
            tensor.copy_(before)
        old = {t.untyped_storage().data_ptr() for t in (*self.made, *self.state())}
        for tensor in tensors(result):
            if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in old:
                tensor.fill_(float("nan"))
            self.made.append(tensor)
        self.n_recorded += 1

        def replay() -> None:
            self.n_replayed += 1
            for old, new in zip(tensors(result), tensors(piece()), strict=True):
                old.copy_(new)

        return Recording(replay, result)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name not in ("cache", "rope", "kept", "slots"):
                yield from tensors(getattr(value, field.name))


def everything(cache: Any) -> list[Tensor]:
    """All tensors that a cache keeps."""
    return [cache.lengths_B, *tensors([*cache.slots])]


def test_a_piece_runs_is_recorded_when_met_again_and_then_replayed() -> None:
    pieces, state = Pieces(), torch.zeros(1)
    recorder = FakeRecorder(lambda: [state])
    ran: list[str] = []

    def add(name: str, amount: float, given: Tensor) -> Tensor:
        ran.append(name)
        state.add_(amount)
        return given + state

    pieces.record(recorder)
    results = []
    for branch in "aaabab":
        with pieces.step(True):
            first = pieces("first", add, "first", 1.0, state)
            results.append(pieces(branch, add, branch, 10.0, first).item())
    for i, found in enumerate(results):  # as if each had run
        assert found == (2 * (11 * i + 1)) + 11 * (i + 1)
    assert recorder.n_recorded == 3  # first; a after first; b after first
    assert recorder.n_replayed == 5 + 3 + 1


def test_steps_that_must_not_be_recorded_run_as_they_are() -> None:
    pieces = Pieces()
    recorder = FakeRecorder(lambda: [])
    pieces.record(recorder)
    for _ in range(3):
        with pieces.step(False):
            assert not pieces.records and pieces("one", torch.ones, 2).sum() == 2
    assert pieces("outside a step", torch.ones, 3).sum() == 3 and recorder.n_recorded == 0


def test_a_piece_that_cannot_be_recorded_runs_and_ends_recording() -> None:
    class Refusing(FakeRecorder):
        def record(self, piece: Callable[[], Any]) -> Recording:
            raise RuntimeError("operation not permitted when stream is capturing")

    class Waiting(FakeRecorder):
        def watch(self, piece: Callable[[], Any]) -> tuple[Any, bool]:
            return piece(), False

    for kind, n_steps in ((Refusing, 2), (Waiting, 1)):
        pieces = Pieces()
        recorder = kind(lambda: [])
        pieces.record(recorder)
        for _ in range(n_steps):
            with pieces.step(True):
                assert pieces.records and pieces("one", torch.ones, 2).sum() == 2
        with pieces.step(True):
            assert not pieces.records and pieces("one", torch.ones, 2).sum() == 2
        assert recorder.n_recorded == 0


SHAPE = {"vocab_size": 23, "d_model": 16, "n_heads": 2, "max_seq_len": 24}
MODELS = [
    ("gpt", {"n_blocks": 1}),
    ("ncn", {"n_blocks": 2}),
    ("recursive", {}),
    ("mor", {"n_slots": 5, "capacities": (1.0, 0.5, 0.5), "burst": 1}),
    ("mor", {"n_slots": 4, "n_passes": 2, "capacities": (1.0, 0.5), "kv": "shared"}),
    ("homunculi", {"n_passes": 2, "window": 4}),
    ("homunculi", {"n_passes": 3, "window": 4, "kv": "shared", "router": "token_choice", "n_shared": 2}),
    ("homunculi", {"n_passes": 2, "regions": ("temporal", "neocortex"), "routing": RoutingOptions(gate="rising")}),
]


@pytest.mark.parametrize(("architecture", "options"), MODELS)
def test_recorded_steps_draw_the_same_text(architecture: str, options: dict[str, Any], monkeypatch) -> None:
    torch.manual_seed(0)
    model = build(architecture, **SHAPE, **options)
    prompts = [torch.randint(23, (n,)).tolist() for n in (3, 5, 4, 5, 2, 5)] * 6
    plain = torch.stack([*generate(model, prompts, 30, Sampling(temperature=0))], 1)
    recorders = record_every_cache(model, monkeypatch)
    recorded = torch.stack([*generate(model, prompts, 30, Sampling(temperature=0))], 1)
    assert torch.equal(recorded, plain)
    assert sum(r.n_recorded for r in recorders) > 2 and sum(r.n_replayed for r in recorders) > 20


def record_every_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[FakeRecorder]:
    """Caches that the model makes from now on record from the first step on."""
    made: list[FakeRecorder] = []
    new_cache = model.new_cache

    def recording_cache(batch_size: int, capacity: int) -> Any:
        cache = new_cache(batch_size, capacity)
        made.append(FakeRecorder(lambda: everything(cache)))
        cache.pieces.record(made[-1])
        return cache

    monkeypatch.setattr(model, "new_cache", recording_cache)
    return made


def test_a_text_that_is_left_early_leaves_no_recordings(monkeypatch) -> None:
    torch.manual_seed(0)
    model = build("mor", **SHAPE, n_slots=4, n_passes=2, capacities=(1.0, 0.5))
    recorders = record_every_cache(model, monkeypatch)
    caches: list[Any] = []
    recording_cache = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *sizes: caches.append(recording_cache(*sizes)) or caches[-1])
    text = generate(model, [[1, 2, 3]] * 8, 15, Sampling(temperature=0))
    for _ in range(8):
        next(text)
    assert recorders[0].n_replayed and caches[0].pieces._found
    text.close()
    assert not caches[0].pieces._found


def test_controls_that_are_set_between_recorded_steps_are_heard(monkeypatch) -> None:
    torch.manual_seed(0)
    model = build("ncn", **SHAPE, n_blocks=2, n_controls=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    def drawn() -> list[int]:
        model.set_controls([0.0, 0.0])
        found = []
        for i, token in enumerate(generate(model, [[1, 2, 3]], 18, Sampling(temperature=0))):
            found.append(int(token))
            if i == 5:
                model.set_controls([3.0, -3.0])
            if i == 10:
                model.set_controls([[-3.0, 3.0]])
        return found

    plain = drawn()
    recorders = record_every_cache(model, monkeypatch)
    assert drawn() == plain
    assert recorders[0].n_recorded == 3 * 2  # trunk and read-out, anew after each change
