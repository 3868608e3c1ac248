"""Entropy and reach of heads whose pattern is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.attention import measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.models import build
from homunculi.runs.measures import Measurement

SHAPE = {"vocab_size": 50, "d_model": 32, "n_blocks": 2, "n_heads": 2, "max_seq_len": 64}


def untrained(arch: str = "gpt", **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = SHAPE if arch == "gpt" else {k: v for k, v in SHAPE.items() if k != "n_blocks"}
    return build(arch, **(shape | config))


def some_ids(n_tokens: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 50, (3, n_tokens))


def planted(pattern_TS: torch.Tensor) -> Measurement:
    """What is found where the heads of step 1 have this pattern, put there by a hook in a real forward."""
    model, ids_BT = untrained(), some_ids(len(pattern_TS))
    put = {"steps.1.attn.pattern": lambda t, _: pattern_TS.expand_as(t).contiguous()}
    recording = Recording("steps.*.attn.pattern", others=put)
    with torch.no_grad():
        output = model(ids_BT, recording)
    found = measure(Observation(model, ids_BT, recording.seen, output.logits))
    assert found is not None
    return found


def test_a_head_that_looks_back_a_fixed_way_is_found_as_such() -> None:
    back_TS = torch.zeros(48, 48)
    back_TS[torch.arange(48), (torch.arange(48) - 10).clamp(min=0)] = 1.0
    found = planted(back_TS)
    distance = (sum(range(10)) + 10 * 38) / 48
    assert found.values["entropy"][:, 1] == pytest.approx(0.0, abs=1e-6)
    assert found.values["distance"][:, 1] == pytest.approx(distance)
    assert found.values["within_8"][:, 1] == pytest.approx(8 / 48)
    assert found.values["within_32"][:, 1] == pytest.approx(1.0)


def test_an_even_head_has_the_entropy_of_a_uniform_choice() -> None:
    n = 48
    found = planted(torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None])
    assert found.values["entropy"][:, 1] == pytest.approx(np.mean([math.log(t) for t in range(1, n + 1)]), rel=1e-5)
    assert found.values["distance"][:, 1] == pytest.approx((n - 1) / 4, rel=1e-5)
    near = np.mean([min(1.0, 8 / t) for t in range(1, n + 1)])
    assert found.values["within_8"][:, 1] == pytest.approx(near, rel=1e-5)
    assert f"{(n - 1) / 4:.1f} tokens" in found.notes[-1]


def test_an_untrained_model_looks_almost_evenly() -> None:
    found = look(untrained(), some_ids(48), ["attention"])["attention"]
    even = np.mean([math.log(t) for t in range(1, 49)])
    assert found.values["entropy"].shape == (2, 2)
    assert (found.values["entropy"] > 0.85 * even).all() and (found.values["entropy"] < even).all()
    assert found.values["distance"] == pytest.approx(47 / 4, rel=0.15)


def test_tokens_that_skip_a_pass_do_not_count_as_heads_that_see_nothing() -> None:
    model = untrained("mor", n_slots=4, n_passes=2, sharing="middle_cycle", capacities=(1.0, 0.25))
    ids_BT = some_ids(48)
    found = look(model, ids_BT, ["attention"])["attention"]
    recording = Recording("steps.2.attn.pattern")
    with torch.no_grad():
        model.eval()(ids_BT, recording)
    pattern_BHTS = recording["steps.2.attn.pattern"]
    attends_BHT = pattern_BHTS.sum(-1) > 0.5
    assert 0 < attends_BHT.float().mean() < 0.5
    expected = [float(torch.special.entr(pattern_BHTS[:, h][attends_BHT[:, h]]).sum(-1).mean()) for h in range(2)]
    assert found.values["entropy"][:, 2] == pytest.approx(expected, rel=1e-4)
