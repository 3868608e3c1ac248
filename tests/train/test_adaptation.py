"""What a model learns beside its gradients: statistics, hooks around an update, plasticity of regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.output import Hidden
from homunculi.models import gpt, registry
from homunculi.train.checkpoint import checkpoints, file_hash
from homunculi.train.config import RunConfig, TrainConfig
from homunculi.train.distributed import World
from homunculi.train.optim import build_optimizers
from homunculi.train.plasticity import multipliers, normalised
from homunculi.train.step import Updater

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdaptingConfig(gpt.Config):
    """The plain transformer's, for a model that adapts."""


class Adapting(gpt.GPT):
    """Counts ids, keeps a running mean of what it saw, and lets its first block learn faster by it."""

    seen: Tensor
    heard: Tensor

    def __init__(self, config: AdaptingConfig) -> None:
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("heard", torch.zeros(()))
        self.steps: list[tuple[int, int]] = []

    def trunk(self, ids_BT: Tensor, *args: Any, **kwargs: Any) -> Hidden:
        hidden = super().trunk(ids_BT, *args, **kwargs)
        mean = ids_BT.float().mean()
        return dataclasses.replace(hidden, statistics={"mean_id": mean, "both": torch.stack([mean, -mean])})

    def before_update(self, step: int, steps: int) -> None:
        self.steps.append((step, steps))

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        self.seen.lerp_(statistics["both"], 0.5)

    def after_evaluation(self, loss: float) -> None:
        self.heard.fill_(loss)

    def plasticity(self) -> dict[str, Tensor]:
        return {"blocks.0": 1.0 + self.seen[0], "blocks.1": torch.ones(())}


@pytest.fixture
def adapting(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    entry = registry.Architecture("adapting", AdaptingConfig, Adapting)
    monkeypatch.setitem(registry._REGISTERED, "adapting", entry)
    return dataclasses.replace(tiny, model=AdaptingConfig(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32))


def updater_of(config: RunConfig) -> Updater:
    torch.manual_seed(0)
    model = Adapting(dataclasses.replace(config.model, vocab_size=9))
    return Updater(model, config, None, World(), CPU, pytest.fail)


def test_statistics_are_averaged_over_micro_batches_and_given_to_the_model(adapting: RunConfig) -> None:
    updater = updater_of(adapting)
    parts = [torch.full((1, 33), 2), torch.full((1, 33), 6)]
    result = updater.update(3, parts, stop=False).read()
    assert result.statistics["mean_id"] == 4.0
    assert updater.model.seen.tolist() == [2.0, -2.0]
    assert updater.model.steps == [(3, adapting.steps)]


def test_a_run_writes_statistics_and_resumes_what_adapted(
    adapting: RunConfig, start: Callable[..., Any], go_on: Callable[..., Any]
) -> None:
    run, _ = start(adapting, "run")
    lines = run.metrics()
    assert all(line["model/mean_id"] > 0 and "model/plasticity/blocks.0" in line for line in lines)
    saved = checkpoints(run.path / "checkpoints")
    last = saved[max(saved)] / "model.safetensors"
    whole = file_hash(last)
    last.write_bytes(b"cut")
    run.write_status(state="failed")
    go_on(run.path)
    assert file_hash(last) == whole


def test_a_model_hears_of_each_evaluation(adapting: RunConfig, start: Callable[..., Any], tmp_path: Path) -> None:
    heard: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapting, "after_evaluation", lambda self, loss: heard.append(loss))
        run, _ = start(adapting, "run")
    assert heard == [line["val/loss"] for line in run.metrics() if "val/loss" in line]


def test_plasticity_scales_updates_and_weight_decay_of_its_region_alone(adapting: RunConfig) -> None:
    ids = [torch.randint(9, (2, 33), generator=torch.Generator().manual_seed(1))]
    moved = {}
    for control in ("off", "own"):
        config = dataclasses.replace(adapting, train=TrainConfig(plasticity=control, clip=0.0))
        updater = updater_of(config)
        updater.model.seen.fill_(0.5)
        before = {name: p.detach().clone() for name, p in updater.model.named_parameters()}
        updater.update(4, ids, stop=False)
        moved[control] = {name: p.detach() - before[name] for name, p in updater.model.named_parameters()}
    for name, factor in (("blocks.0.attn.q.weight", 1.2), ("blocks.1.attn.q.weight", 0.8), ("embed.weight", 1.0)):
        torch.testing.assert_close(moved["own"][name], factor * moved["off"][name], rtol=1e-3, atol=1e-7)


def test_a_control_gives_a_region_the_signal_of_another(adapting: RunConfig) -> None:
    model = updater_of(adapting).model
    model.seen.fill_(0.5)
    own, shuffled, off = (multipliers(model, control) for control in ("own", "shuffled", "off"))
    assert own["blocks.0"] == shuffled["blocks.1"] and own["blocks.1"] == shuffled["blocks.0"]
    assert own["blocks.0"] > own["blocks.1"]
    assert set(map(float, off.values())) == {1.0}


@pytest.mark.parametrize("raw", [(1.0, 1.0), (1e6, 1.0, 1.0), (1e-9, 5.0, 5.0), (0.9, 1.1, 1.3)])
def test_multipliers_have_mean_one_and_stay_within_bounds(raw: tuple[float, ...]) -> None:
    scaled = normalised(torch.tensor(raw))
    assert scaled.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert scaled.min() >= 0.5 - 1e-6 and scaled.max() <= 2.0 + 1e-6
    assert torch.equal(scaled.argsort(), torch.tensor(raw).argsort())


def test_parameters_without_a_region_form_the_groups_they_always_formed(tiny: RunConfig) -> None:
    model = gpt.GPT(dataclasses.replace(tiny.model, vocab_size=9))
    (adamw,) = build_optimizers(model, tiny)
    assert [group["weight_decay"] for group in adamw.param_groups] == [tiny.train.weight_decay, 0.0]
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(model.parameters()))
