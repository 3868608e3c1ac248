"""Instruments watch a run without changing a bit of it, lose nothing, and never stop it."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kill_test import outcome
from homunculi.errors import InputError, Stopped
from homunculi.instruments import registry
from homunculi.instruments.observation import Observation, UpdateSeen
from homunculi.instruments.observing import look
from homunculi.models import build
from homunculi.models.files import read_weights
from homunculi.runs.directory import RunDirectory, open_run, state_of
from homunculi.runs.measures import (
    Measurement,
    measured_instruments,
    measured_steps,
    read_measurement,
)
from homunculi.text.shards import prepare
from homunculi.train import after, copies, watching
from homunculi.train.checkpoint import checkpoints
from homunculi.train.config import InstrumentsConfig, RunConfig, TrainConfig, config_from_json, config_to_json
from homunculi.train.loop import finished_summary
from homunculi.train.step import Updater
from homunculi.train.watch_plan import is_watched, probe_of

Start = Callable[..., Any]
Install = Callable[..., None]
OFF = InstrumentsConfig(watch="off")
DUE = [0, 1, 2, 4, 8, 12]
SETTLES = 3  # updates until nothing is compiled any more


class Crash(BaseException):
    """Stands for the end of the process: nothing in the loop handles it."""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Register a function as an instrument for the length of a test."""
    registry.names()

    def add(name: str, measure: Callable[[Any], Measurement | None], reads: Any = "forward") -> None:
        made = registry.Instrument(name, "table", name, f"What of {name}?", (), (), reads, measure)
        monkeypatch.setitem(registry._REGISTERED, name, made)

    yield add


def scalar(value: float) -> Measurement:
    return Measurement({"value": np.array(value)})


def scalars(run: RunDirectory, name: str, key: str = "value") -> dict[int, float]:
    path = run.path
    return {s: float(read_measurement(path, name, s).measurement.values[key]) for s in measured_steps(path, name)}


def total(tensors: Any) -> float:
    return float(sum(t.detach().double().sum() for t in tensors))


# What is measured when.


def test_the_steps_that_are_due_follow_from_the_configuration(tiny: RunConfig) -> None:
    def due(steps: int, **settings: Any) -> list[int]:
        config = dataclasses.replace(tiny, steps=steps, instruments=InstrumentsConfig(**settings))
        return [step for step in range(steps + 1) if is_watched(config, step)]

    assert due(12) == DUE
    assert due(120) == [0, 1, 2, 4, 8, 16, 32, 64, 100, 120]
    assert due(3000, log_spaced=False) == list(range(0, 3001, 150))
    assert due(10, every=4, log_spaced=False) == [0, 4, 8, 10]
    assert due(12, watch="off") == []


def test_the_probe_is_the_start_of_the_validation_text(tiny: RunConfig) -> None:
    text = prepare(tiny.corpus, tiny.text)
    start = text.val.tokens[:200].astype(np.int64)
    ids_BT = probe_of(text, seq_len=32, n_tokens=96)
    assert ids_BT.shape == (3, 32) and ids_BT.flatten().tolist() == start[:96].tolist()
    assert probe_of(text, seq_len=1024, n_tokens=200).shape == (1, 200)
    assert probe_of(text, seq_len=1024, n_tokens=100_000).shape[1] == 256


def test_a_run_measures_and_says_before_what(tiny: RunConfig, start: Start) -> None:
    run, listener = start(tiny, instruments=InstrumentsConfig(names=("activation", "updates", "weight_rank")))
    assert measured_instruments(run.path) == ["activation", "updates", "weight_rank"]
    assert measured_steps(run.path, "activation") == measured_steps(run.path, "weight_rank") == DUE
    assert measured_steps(run.path, "updates") == DUE[1:]
    stored = read_measurement(run.path, "activation", 8)
    assert stored.tokens == 8 * 256 and stored.measurement.values["activation"].shape == (4, 2)
    plan = [line for line in listener.plans if line.startswith(("instruments", "measured"))]
    assert plan == [
        "instruments  activation, updates, weight_rank",
        "measured     untrained, after 1, 2, 4, 8, … steps, every 100 steps and at the end",
    ]


def test_what_an_instrument_is_told(tiny: RunConfig, start: Start, install: Install) -> None:
    told: list[Observation] = []
    install("listens", lambda seen: told.append(seen))
    run, _ = start(tiny, steps=2, instruments=InstrumentsConfig(names=("listens",), probe_tokens=64))
    assert [seen.step for seen in told] == [0, 1, 2]
    assert told[0].ids_BT.shape == (2, 32) and told[0].options["probe_tokens"] == 64
    assert told[0].pieces[ord("a")] == "a" and told[0].byte_lengths[ord("a")] == 1
    assert told[0].first.keys() == dict(told[0].model.named_parameters()).keys()
    assert not told[0].model.training
    assert measured_instruments(run.path) == [], "an instrument that finds nothing leaves nothing"


def test_off_measures_nothing(tiny: RunConfig, start: Start) -> None:
    run, listener = start(tiny, instruments=OFF)
    assert measured_instruments(run.path) == [] and "instruments  off" in listener.plans
    assert not [key for line in run.metrics() for key in line if "instruments" in key]
    assert finished_summary(tiny, run)["instruments_s"] is None


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_instrument_that_does_not_exist_is_refused_by_every_process_before_it_waits_for_others(
    tiny: RunConfig, start: Start, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)  # there is no address at which the other one could be met
    with pytest.raises(InputError, match="activatoin: no such instrument; did you mean activation"):
        start(tiny, instruments=InstrumentsConfig(names=("activatoin",)))


def test_what_a_model_has_not_is_said_in_the_plan(
    tiny: RunConfig, start: Start, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("needs_more", lambda seen: scalar(0.0))
    needs_more = dataclasses.replace(registry.get("needs_more"), needs=("steps.*.no_such_site",))
    monkeypatch.setitem(registry._REGISTERED, "needs_more", needs_more)
    _, listener = start(tiny, steps=1, instruments=InstrumentsConfig(names=("activation", "needs_more")))
    assert "not measured needs_more: this model has nothing for it" in listener.plans


def test_a_configuration_written_before_there_were_instruments_loads(tiny: RunConfig) -> None:
    tiny = dataclasses.replace(tiny, instruments=InstrumentsConfig())
    described = config_to_json(tiny)
    assert described.pop("instruments")["watch"] == "on"
    assert config_from_json(described) == tiny


# Training is the same.


def with_everything(config: RunConfig) -> RunConfig:
    model = dataclasses.replace(config.model, dropout=0.1)
    train = TrainConfig(ema=0.9, optimizer="muon", eval_tokens=512, micro_tokens=128)
    return dataclasses.replace(config, model=model, train=train)


@pytest.mark.parametrize("shape", [lambda config: config, with_everything], ids=["plain", "dropout_muon_mean"])
def test_training_comes_to_the_same_bits(
    shape: Callable[[RunConfig], RunConfig], tiny: RunConfig, start: Start
) -> None:
    config = shape(tiny)
    watched, _ = start(config, "watched", instruments=InstrumentsConfig(every=1))
    alone, _ = start(config, "alone", instruments=OFF)
    assert measured_steps(watched.path, "updates") == list(range(1, 13))
    assert outcome(watched.path) == outcome(alone.path)


def test_compiled_training_comes_to_the_same_bits(
    tiny: RunConfig, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("homunculi.train.step._TRIALS", 3)
    watched, _ = start(tiny, "watched", compile="on", instruments=InstrumentsConfig(every=1))
    alone, _ = start(tiny, "alone", compile="on", instruments=OFF)
    assert watched.info()["compiled"] and measured_steps(watched.path, "updates") == list(range(1, 13))
    assert outcome(watched.path) == outcome(alone.path)


@pytest.mark.parametrize("name", ["gpt", "homunculi", "mor", "ncn", "recursive"])
def test_no_instrument_draws_from_the_generators_of_training(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, vocab_size=40, d_model=32, n_heads=2, max_seq_len=16)
    ids_BT = torch.randint(40, (2, 16))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before, numpy_before = torch.random.get_rng_state(), str(np.random.get_state())
    look(model, ids_BT, first={key: p.detach() for key, p in model.named_parameters()})
    assert torch.equal(before, torch.random.get_rng_state()) and numpy_before == str(np.random.get_state())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_the_worker_reads_weights_that_do_not_move_under_it(tiny: RunConfig, start: Start, install: Install) -> None:
    def slow(seen: Observation) -> Measurement:
        first = total(seen.model.parameters())
        time.sleep(0.02)
        return Measurement({"value": np.array(first), "moved": np.array(total(seen.model.parameters()) - first)})

    install("slow", slow)
    chosen = InstrumentsConfig(names=("slow",), every=1)
    run, _ = start(tiny, instruments=chosen)
    assert set(scalars(run, "slow", "moved").values()) == {0.0}
    sums = scalars(run, "slow")
    assert len(set(sums.values())) == 12, "the last update has a rate of zero"
    for step, folder in checkpoints(run.path / "checkpoints").items():
        saved = read_weights(folder / "model.safetensors")
        assert sums[step] == pytest.approx(total(saved[name] for name in saved if "rope" not in name), rel=1e-5)


def test_steps_wait_in_copies_of_their_own_while_the_worker_is_busy(
    tiny: RunConfig, start: Start, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a copy for each step that is due, training ends before the first of them has been read; the values are
    those of the one copy, whose steps wait for each other."""
    names = InstrumentsConfig(names=("sum",))
    install("sum", lambda seen: scalar(total(seen.model.parameters())))
    expected = scalars(start(tiny, "one", instruments=names)[0], "sum")
    training_ended = Event()

    def measure(seen: Any) -> Measurement:
        assert seen.step == 0 or training_ended.wait(60), "training waited for a measurement"
        return scalar(total(seen.model.parameters()))

    def finish(self: watching.Watch) -> None:
        training_ended.set()
        self._wait()

    install("sum", measure)
    monkeypatch.setattr(copies, "how_many", lambda model, device: len(DUE))
    monkeypatch.setattr(watching.Watch, "finish", finish)
    run, _ = start(tiny, instruments=names, eval_every=0, checkpoint_every=0, sample_every=0)
    assert scalars(run, "sum") == expected and sorted(expected) == DUE


@pytest.mark.parametrize("n_copies", [1, 2, 20])
def test_nothing_is_measured_beside_compilation_and_training_waits_only_where_copies_run_out(
    n_copies: int, tiny: RunConfig, start: Start, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = InstrumentsConfig(names=("sum",))
    install("sum", lambda seen: scalar(total(seen.model.parameters())))
    expected = scalars(start(tiny, "one", instruments=names)[0], "sum")
    updating, waited = Event(), []

    def measure(seen: Any) -> Measurement:
        assert not updating.is_set(), "an update was under way while code was being compiled"
        return scalar(total(seen.model.parameters()))

    update, wait = Updater.update, watching.Watch._wait

    def update_unsettled(self: Updater, step: int, *given: Any) -> Any:
        if step <= SETTLES:
            updating.set()
        try:
            result = update(self, step, *given)
            time.sleep(0.02 if step <= SETTLES else 0)
            return result
        finally:
            updating.clear()

    def wait_seen(self: watching.Watch, n_left: int = 0) -> None:
        waited.append(len(self._held))
        wait(self, n_left)

    install("sum", measure)
    monkeypatch.setattr(copies, "how_many", lambda model, device: n_copies)
    monkeypatch.setattr(Updater, "update", update_unsettled)
    monkeypatch.setattr(Updater, "settled", property(lambda self: self._n_taken >= SETTLES))
    monkeypatch.setattr(watching.Watch, "_wait", wait_seen)
    run, _ = start(tiny, instruments=names, eval_every=0, checkpoint_every=0, sample_every=0)
    assert scalars(run, "sum") == expected and sorted(expected) == DUE
    held = [n for n in waited if n]
    assert (len(held) > 2) == (n_copies == 1) and max(held, default=0) <= n_copies


def test_a_gpu_holds_as_many_copies_as_fit_into_a_tenth_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gpt", vocab_size=64, d_model=16, n_blocks=1, n_heads=2, max_seq_len=8)
    size = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    told = {"total_memory": 40 * size * 3}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**told))
    assert copies.how_many(model, torch.device("cuda")) == 3
    told["total_memory"] = 1
    assert copies.how_many(model, torch.device("cuda")) == 1
    told["total_memory"] = 10**15
    assert copies.how_many(model, torch.device("cuda")) == copies.MOST
    assert copies.how_many(model, torch.device("cpu")) == 1


def test_the_mean_of_the_weights_is_measured_where_evaluation_uses_it(
    tiny: RunConfig, start: Start, install: Install
) -> None:
    install("weights", lambda seen: scalar(total(seen.model.parameters())))
    install("moved", lambda seen: scalar(total(seen.after.values())), "update")
    chosen = InstrumentsConfig(names=("weights", "moved"))
    run, _ = start(tiny, train=TrainConfig(ema=0.5, eval_tokens=512), instruments=chosen)
    saved = checkpoints(run.path / "checkpoints")[12]
    average = total(read_weights(saved / "average.safetensors").values())
    own = read_weights(saved / "model.safetensors")
    own_total = total(own[name] for name in read_weights(saved / "average.safetensors"))
    assert scalars(run, "weights")[12] == pytest.approx(average, rel=1e-5)
    assert scalars(run, "moved")[12] == pytest.approx(own_total, rel=1e-5)
    assert average != pytest.approx(own_total, rel=1e-4)


def test_gradients_are_those_before_clipping(tiny: RunConfig, start: Start) -> None:
    run, _ = start(
        tiny,
        train=TrainConfig(clip=0.01, eval_tokens=512, micro_tokens=64),
        instruments=InstrumentsConfig(names=("updates",)),
    )
    logged = {line["step"]: line["train/grad_norm"] for line in run.metrics()}
    found = scalars(run, "updates", "gradient_norm")
    assert found == pytest.approx({step: logged[step] for step in DUE[1:]}, rel=1e-5)
    assert min(found.values()) > 0.01
    rates = {line["step"]: line["lr"] for line in run.metrics()}
    assert scalars(run, "updates", "lr") == pytest.approx({step: rates[step] for step in DUE[1:]}, rel=1e-6)


# Nothing is lost.


def measured(path: Path) -> dict[str, dict[int, list[float]]]:
    """Every number of every instrument."""
    return {
        name: {
            step: np.concatenate(
                [
                    np.nan_to_num(v.ravel())
                    for _, v in sorted(read_measurement(path, name, step).measurement.values.items())
                ]
            ).tolist()
            for step in measured_steps(path, name)
        }
        for name in measured_instruments(path)
    }


@pytest.mark.parametrize("moment", ["save_checkpoint", "_evaluate", "retain"])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_run_that_crashed_measures_what_an_undisturbed_one_does(
    moment: str,
    occurrence: int,
    tiny: RunConfig,
    start: Start,
    go_on: Start,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(tiny, instruments=InstrumentsConfig(names=("activation", "updates", "weight_rank")))
    calm, _ = start(config, "calm")
    real, calls = getattr(after, moment), 0

    def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs)
        if calls == occurrence:
            raise Crash
        return result

    with monkeypatch.context() as patch:
        patch.setattr(after, moment, crashing)
        with pytest.raises(Crash):
            start(config, "crashed")
    go_on(tmp_path / "crashed")
    assert measured(tmp_path / "crashed") == measured(calm.path)


def test_a_signal_waits_for_what_is_under_way(
    tiny: RunConfig, start: Start, install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slow(seen: Observation) -> Measurement:
        time.sleep(0.05)
        return scalar(1.0)

    install("slow", slow)
    real = after._sample

    def terminated(*args: Any) -> None:
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(after, "_sample", terminated)
    with pytest.raises(Stopped):
        start(tiny, "stopped", instruments=InstrumentsConfig(names=("slow",), every=1))
    saved = max(checkpoints(tmp_path / "stopped" / "checkpoints"))
    assert measured_steps(tmp_path / "stopped", "slow") == list(range(saved + 1))


def test_what_was_spent_is_written_and_counted_on_by_a_resumed_run(
    tiny: RunConfig, start: Start, go_on: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = after.retain

    def crashing(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(after, "retain", crashing)
        with pytest.raises(Crash):
            start(tiny)
    at_four = RunDirectory(tmp_path / "run").metrics()[-1]
    assert at_four["step"] == 4 and at_four["perf/instruments_worker_s"] > 0
    run, _ = go_on(tmp_path / "run")
    last = run.metrics()[-1]
    for key in ("perf/instruments_s", "perf/instruments_worker_s"):
        assert last[key] > at_four[key]
    (event,) = [event for event in run.events() if event["kind"] == "instruments"]
    assert event["step"] == 12 and event["instruments_worker_s"] >= last["perf/instruments_worker_s"]
    assert finished_summary(tiny, run)["instruments_s"] == last["perf/instruments_s"]


# Nothing stops a run.


def failures(run: RunDirectory) -> list[tuple[str, int, str]]:
    return [(e["name"], e["step"], e["reason"]) for e in run.events() if e["kind"] == "instrument_failed"]


@pytest.mark.parametrize("reads", ["forward", "update"])
def test_an_instrument_that_fails_is_left_out_and_nothing_else_is(
    reads: Any, tiny: RunConfig, start: Start, install: Install
) -> None:
    def failing(seen: Observation | UpdateSeen) -> Measurement:
        if seen.step == 2:
            raise RuntimeError("no such thing\nas this")
        return scalar(float(seen.step))

    install("failing", failing, reads)
    chosen = InstrumentsConfig(names=("failing", "activation", "updates"))
    run, listener = start(tiny, "run", instruments=chosen)
    alone, _ = start(tiny, "alone", instruments=OFF)
    assert failures(run) == [("failing", 2, "RuntimeError: no such thing as this")]
    assert measured_steps(run.path, "failing") == ([0, 1] if reads == "forward" else [1])
    assert measured_steps(run.path, "activation") == DUE and measured_steps(run.path, "updates") == DUE[1:]
    assert any("failing is left out from step 2 on" in text for text in listener.messages)
    assert outcome(run.path) == outcome(alone.path)


def test_values_that_cannot_be_kept_are_a_failure(tiny: RunConfig, start: Start, install: Install) -> None:
    install("Bad name", lambda seen: scalar(1.0))
    run, _ = start(tiny, instruments=InstrumentsConfig(names=("Bad name", "activation")))
    assert [(name, step) for name, step, _ in failures(run)] == [("Bad name", 0)]
    assert state_of(run) == "done" and measured_steps(run.path, "activation") == DUE


def test_a_forward_that_fails_leaves_out_all_that_read_it(
    tiny: RunConfig, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Observation:
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(watching, "observe", broken)
    run, _ = start(tiny, instruments=InstrumentsConfig(names=("activation", "weight_rank", "updates")))
    assert [(name, step) for name, step, _ in failures(run)] == [("activation", 0), ("weight_rank", 0)]
    assert measured_instruments(run.path) == ["updates"] and state_of(run) == "done"


def test_a_copy_that_cannot_be_made_leaves_out_all(
    tiny: RunConfig, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, step: int) -> Any:
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(watching.Watch, "_copied", broken)
    run, _ = start(tiny, instruments=InstrumentsConfig(names=("activation", "updates")))
    assert [(name, step) for name, step, _ in failures(run)] == [("activation", 0), ("updates", 0)]
    assert state_of(open_run(run.path)) == "done" and measured_instruments(run.path) == []


def test_the_probe_is_read_with_the_boundaries_of_documents_that_training_has(
    tiny: RunConfig, start: Start, install: Install, tmp_path: Path
) -> None:
    told: list[Observation] = []
    install("listens", lambda seen: told.append(seen))
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(80):
        (texts / f"{i}.txt").write_text("red one over blue " + "abcdefgh"[i % 8] * 4, encoding="utf-8")
    tiny = dataclasses.replace(
        tiny, corpus=str(texts), steps=1, text=dataclasses.replace(tiny.text, document_mask=True)
    )
    start(tiny, instruments=InstrumentsConfig(names=("listens",), probe_tokens=96))
    seen = told[-1]
    separator = prepare(tiny.corpus, tiny.text).tokenizer.eot_id
    documents_BT = (seen.ids_BT == separator).cumsum(1)
    assert int(documents_BT.max()) > 0, "the probe has more than one document"
    with torch.no_grad():
        apart, together = (seen.model(seen.ids_BT, documents_BT=one).logits for one in (documents_BT, None))
    torch.testing.assert_close(seen.logits_BTV, apart)
    assert not torch.allclose(apart, together)
