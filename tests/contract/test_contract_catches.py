"""Each contract check fails for a model that is broken in its way, and only such a model is refused."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_checks import CHECKS, SIZES, Case, stale
from torch import Tensor, nn

from homunculi.core.budget import Budget
from homunculi.core.cache import Cache
from homunculi.core.output import Hidden, Output
from homunculi.core.taps import NO_TAPS, TapPoint
from homunculi.errors import InputError
from homunculi.models.gpt import GPT, Config

FIELDS: dict[str, Any] = SIZES | {"n_blocks": 1, "n_heads": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigWithoutJson(Config):
    ratio: float = float("nan")


class Overlong(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return super().readout(torch.cat([x_BTD, x_BTD], 1), taps)


class Confident(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return 100 * super().readout(x_BTD, taps)


class Foresight(GPT):
    """A look at the whole row behind a factor that starts at zero."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.glance = nn.Parameter(torch.zeros(()))

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return super().readout(x_BTD + self.glance * x_BTD.mean(1, keepdim=True), taps)


class Crowd(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return super().readout(x_BTD - 0.1 * x_BTD.mean(0, keepdim=True), taps)


class Forgetful(GPT):
    def forward(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Output:
        return super().forward(ids_BT, taps, None, documents_BT)


class Unteachable(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return 1e-3 * super().readout(x_BTD, taps).tanh()


class Siamese(GPT):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.again = self.norm


class Deaf(GPT):
    """Offers a tap and goes on with the tensor of before."""

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        taps("readout.state", x_BTD)
        return super().readout(x_BTD, taps)


class Stutter(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return taps("readout.logits", super().readout(x_BTD, taps))


class Shy(GPT):
    """Computes something else while it is watched."""

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return super().readout(x_BTD + 1e-6 * taps.wants("embed"), taps)


class Biased(GPT):
    """Its modulation is not neutral at the start: the twin without it gives other logits."""

    gain = 1.0001

    def neutral_twin(self) -> Biased:
        twin = copy.deepcopy(self)
        twin.gain = 1.0
        return twin

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTD = super().trunk(ids_BT, taps, cache, documents_BT).x_BTD
        return Hidden(torch.cat([x_BTD[..., :1] * self.gain, x_BTD[..., 1:]], -1))


class Thrifty(GPT):
    def budget(self, context: int | None = None) -> Budget:
        told = super().budget(context).to_json() | {"flops_per_token": 1000}
        return Budget(**{name: told[name] for name in Budget.__slots__})


class Moody(GPT):
    """Its weights depend on how many were made before."""

    made = itertools.count()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with torch.no_grad():
            self.norm.weight.mul_(1 + next(Moody.made) / 8)


class Ageing(GPT):
    """Keeps a count that no checkpoint holds."""

    age = 0

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        self.age += 1
        return super().readout(x_BTD * (1 + 0.1 * self.age), taps)


class TwoFaced(GPT):
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return super().readout(x_BTD, taps) * (2.0 if torch.compiler.is_compiling() else 1.0)


class Idle(GPT):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.unused = nn.Parameter(torch.ones(3))


BROKEN = [
    ("shape", Overlong),
    ("initial_loss", Confident),
    ("causality", Foresight),
    ("batch_independence", Crowd),
    ("cached_decoding", Forgetful),
    ("overfitting", Unteachable),
    ("state_dict", Siamese),
    ("taps", Deaf),
    ("taps", Stutter),
    ("taps", Shy),
    ("neutral_modulation", Biased),
    ("budget", Thrifty),
    ("same_seed", Moody),
    ("exact_resume", Ageing),
    ("compilation", TwoFaced),
    ("gradients", Idle),
]


@pytest.mark.parametrize(("check", "model_type"), BROKEN)
def test_a_broken_model_is_caught(check: str, model_type: type[GPT], tmp_path: Path) -> None:
    case = Case(model_type.__name__, model_type, Config(**FIELDS))
    with pytest.raises(AssertionError):
        CHECKS[check](case, tmp_path)


def test_a_configuration_that_json_cannot_hold_is_caught(tmp_path: Path) -> None:
    case = Case("nan", GPT, ConfigWithoutJson(**FIELDS))
    with pytest.raises(InputError, match="ratio"):
        CHECKS["config_json"](case, tmp_path)


def test_every_check_has_a_model_that_fails_it() -> None:
    assert {check for check, _ in BROKEN} | {"config_json"} == CHECKS.keys()


def test_an_exemption_is_stale_only_when_all_variants_pass(tmp_path: Path) -> None:
    sound, leaky = Case("sound", GPT, Config(**FIELDS)), Case("leaky", Foresight, Config(**FIELDS))
    assert stale("causality", [sound], tmp_path)
    assert not stale("causality", [sound, leaky], tmp_path)
