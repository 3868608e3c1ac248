"""What a run does and leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import homunculi
from homunculi.errors import DIVERGED, Diverged, InputError
from homunculi.models.gpt import Config
from homunculi.runs.directory import open_run, state_of
from homunculi.text.config import TextConfig
from homunculi.train import checkpoint, step
from homunculi.train.checkpoint import checkpoints
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig, config_from_json, config_to_json


def test_a_run_learns_and_leaves_what_it_promises(tiny: RunConfig, start: Callable[..., Any]) -> None:
    run, listener = start(tiny, steps=40, lr=3e-3)
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["val/loss"] < lines[3]["val/loss"] < math.log(256) + 0.2
    assert lines[-1]["tokens"] == 40 * 256 and lines[-1]["flops"] > 0
    assert state_of(run) == "done" and run.status()["exit_code"] == 0
    assert [sample["step"] for sample in run.samples()] == [6, 12, 18, 24, 30, 36, 40]
    assert len(listener.plans) >= 5 and len(listener.lines) == 40
    info = run.info()
    assert info["budget"]["parameters"] == sum(p.numel() for p in homunculi.load(run.path).parameters())
    assert {"config", "data", "plan", "provenance", "seeds", "architecture"} <= info.keys()
    assert (run.path / "tokenizer.json").is_file()


def test_bits_per_byte_follow_from_the_loss_for_bytes(tiny: RunConfig, start: Callable[..., Any]) -> None:
    run, _ = start(tiny)
    last = run.metrics()[-1]
    # one document, one byte a token; the separator that ends the text is predicted too and stands for no byte
    n_bytes = last["val/tokens"] - (last["val/tokens"] < 512)
    assert last["val/bpb"] == pytest.approx(last["val/loss"] * last["val/tokens"] / n_bytes / math.log(2), rel=1e-9)


def test_load_gives_the_weights_that_were_evaluated(tiny: RunConfig, start: Callable[..., Any]) -> None:
    plain, _ = start(tiny, "plain")
    averaged, _ = start(tiny, "averaged", train=TrainConfig(ema=0.5, eval_tokens=512))
    model = homunculi.load(averaged.path)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    own = checkpoint.read_weights(checkpoints(averaged.path / "checkpoints")[12] / "model.safetensors")
    same_run = checkpoint.read_weights(checkpoints(plain.path / "checkpoints")[12] / "model.safetensors")
    assert all(torch.equal(own[name], same_run[name]) for name in own), "a mean of the weights must not change training"
    assert any(not torch.equal(own[name], p) for name, p in model.named_parameters())


def test_load_of_a_step(tiny: RunConfig, start: Callable[..., Any]) -> None:
    run, _ = start(tiny)
    assert homunculi.load(run.path, step=8) is not None
    with pytest.raises(InputError, match=r"no checkpoint of step 5; there are .*8, 12"):
        homunculi.load(run.path, step=5)
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint yet"):
        homunculi.load(run.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    value: float, tiny: RunConfig, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = step.TrainingLoss.forward
    calls = 0

    def poisoned(self: Any, ids: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        losses = real(self, ids)
        return losses._replace(cross_entropy=losses.cross_entropy * value) if calls == 7 else losses

    monkeypatch.setattr(step.TrainingLoss, "forward", poisoned)
    with pytest.raises(Diverged, match="step 7") as error:
        start(tiny)
    assert error.value.exit_code == DIVERGED
    run = open_run(tmp_path / "run")
    assert state_of(run) == "diverged"
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert list(checkpoints(run.path / "checkpoints")) == [4]
    batch = np.load(run.path / "diverged" / "step-00000007-batch.npy")
    assert batch.shape == (8, 33)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tiny: RunConfig) -> None:
    from homunculi.train.distributed import World
    from homunculi.train.session import build_model

    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vocab_size=257))
    model = build_model(config, torch.device("cpu"))
    updater = step.Updater(model, config, None, World(), torch.device("cpu"), lambda reason: None)
    model.blocks[0].attn.o.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = updater.update(1, [torch.randint(0, 257, (2, 33))], stop=False).read()
    assert math.isfinite(result.loss) and not result.finite
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_accumulation_changes_nothing_but_rounding(tiny: RunConfig, start: Callable[..., Any]) -> None:
    whole, _ = start(tiny, "whole")
    parts, _ = start(tiny, "parts", train=TrainConfig(micro_tokens=64, eval_tokens=512))
    assert parts.info()["plan"]["n_micro"] == 4
    for a, b in zip(whole.metrics(), parts.metrics(), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)


def test_a_chunked_loss_changes_nothing_but_rounding(tiny: RunConfig, start: Callable[..., Any]) -> None:
    whole, _ = start(tiny, "whole")
    chunked, _ = start(tiny, "chunked", train=TrainConfig(loss_chunks=3, eval_tokens=512))
    for a, b in zip(whole.metrics(), chunked.metrics(), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimizer_and_precision_learns(
    optimizer: Any, precision: Any, tiny: RunConfig, start: Callable[..., Any]
) -> None:
    train_config = TrainConfig(optimizer=optimizer, schedule="cosine", eval_tokens=512)
    run, _ = start(tiny, steps=30, lr=5e-3, precision=precision, train=train_config)
    losses = [line["train/loss"] for line in run.metrics()]
    assert losses[-1] < losses[0] - 1.0


def test_compilation_that_fails_falls_back_and_says_so(
    tiny: RunConfig, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(module: Any, **options: Any) -> Any:
        def fail(*args: Any) -> Any:
            raise RuntimeError("no C++ compiler here")

        return fail

    monkeypatch.setattr(step.Updater, "_wants_compilation", lambda self: True)
    monkeypatch.setattr(torch, "compile", no_compiler)
    run, listener = start(tiny)
    assert any("no C++ compiler here" in text for text in listener.messages)
    assert [event["outcome"] for event in run.events() if event["kind"] == "compile"] == ["fell back to eager"]
    assert state_of(run) == "done"


def test_a_backward_that_cannot_be_compiled_falls_back_to_the_same_training(
    tiny: RunConfig, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            raise RuntimeError("cannot fuse these kernels")

    def half_a_compiler(module: Any, **options: Any) -> Any:
        def call(*args: Any) -> Any:
            losses = module(*args)
            return losses._replace(cross_entropy=Broken.apply(losses.cross_entropy))

        return call

    eager, _ = start(tiny, name="eager")
    monkeypatch.setattr(step.Updater, "_wants_compilation", lambda self: True)
    monkeypatch.setattr(torch, "compile", half_a_compiler)
    run, listener = start(tiny)
    assert any("cannot fuse these kernels" in text for text in listener.messages)
    assert [line["train/loss"] for line in run.metrics()] == [line["train/loss"] for line in eager.metrics()]


def test_a_full_disk_while_saving_leaves_the_last_checkpoint(
    tiny: RunConfig,
    start: Callable[..., Any],
    go_on: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, calls = checkpoint.save_file, 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            start(tiny)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]
    assert state_of(open_run(tmp_path / "run")) == "failed"
    run, _ = go_on(tmp_path / "run")
    assert state_of(run) == "done"


def test_a_plan_that_does_not_fit_the_disk_is_refused(
    tiny: RunConfig, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("homunculi.train.plan.shutil.disk_usage", lambda path: SimpleNamespace(free=1000, total=10**9))
    with pytest.raises(InputError, match=r"needs .* MiB of disk and 0 MiB are free"):
        start(tiny)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_batch_that_does_not_divide_names_the_nearest(tiny: RunConfig, start: Callable[..., Any]) -> None:
    with pytest.raises(
        InputError, match="batch_tokens: 250 is not a multiple of the context of 32; use batch_tokens=256"
    ):
        start(tiny, batch_tokens=250)


def test_a_vocabulary_too_small_for_the_data_is_refused(tiny: RunConfig, start: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"model.vocab_size: 100 is too small, the tokenizer has 257 tokens"):
        start(tiny, model=Config(vocab_size=100, d_model=16, n_blocks=1, n_heads=2, max_seq_len=32))


def test_a_corpus_shorter_than_a_sequence_is_refused(
    tiny: RunConfig, start: Callable[..., Any], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InputError, match="training tokens and a sequence of 32 needs 33"):
        start(tiny, corpus=str(short))


def test_a_configuration_survives_json(tiny: RunConfig) -> None:
    config = dataclasses.replace(tiny, text=TextConfig(vocab_size=300), output=OutputConfig(prompts=("x", "y")))
    described = json.loads(json.dumps(config_to_json(config)))
    assert described["model"]["architecture"] == "gpt"
    assert config_from_json(described) == config


def test_packed_documents_do_not_see_each_other(tiny: RunConfig, start: Callable[..., Any], tmp_path: Path) -> None:
    packed = tmp_path / "packed.txt"
    packed.write_text("<|endoftext|>\n".join(f"story number {i} is short.\n" for i in range(200)))
    text = TextConfig(tokenizer="bytes", document_mask=True, val_frac=0.1)
    masked, _ = start(tiny, "masked", corpus=str(packed), text=text)
    open_, _ = start(tiny, "open", corpus=str(packed), text=dataclasses.replace(text, document_mask=False))
    assert masked.metrics()[0]["train/loss"] != open_.metrics()[0]["train/loss"]
    assert state_of(masked) == "done"
