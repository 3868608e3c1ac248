"""Half-lives and distances that were set by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from homunculi.instruments.memory import distance_labels, measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.models import build

RATES = (0.5, 0.05)
T = 128


def thinking(**config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("homunculi", **{"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": T, **config})


def seen(q: Tensor, k: Tensor, rates: tuple[float, ...] = RATES, write: float = 1.0) -> Observation:
    ids_BT = torch.zeros(2, T, dtype=torch.long)
    taps = {
        "steps.1.memory.forget": torch.tensor(rates).expand(2, T, 2),
        "steps.1.memory.write": torch.full((2, T, 2), write),
        "steps.1.memory.q": q,
        "steps.1.memory.k": k,
    }
    return Observation(thinking(), ids_BT, taps, torch.zeros(2, T, 40))


def test_rates_set_by_hand_give_their_half_lives_and_distances() -> None:
    same = torch.zeros(2, T, 2, 8)
    same[..., 0] = 1.0  # every key answers every query, so that only time and decay weigh
    measured = measure(seen(same, same)).values
    assert measured["half-life"][0] == pytest.approx([math.log(2) / rate for rate in RATES])
    sums = np.zeros((2, 2))
    for t in range(T // 2, T):
        ages = np.arange(t + 1)
        for head, rate in enumerate(RATES):
            weight = np.exp(-rate * ages)
            sums[head] += (weight * ages).sum(), weight.sum()
    assert measured["distance"][0] == pytest.approx(sums[:, 0] / sums[:, 1], rel=1e-3)
    held = [(1 - math.exp(-rate * T)) / (1 - math.exp(-rate)) for rate in RATES]
    assert measured["occupancy"][0] == pytest.approx(held, rel=1e-4)
    assert measured["share by distance"].sum() == pytest.approx(1)


def test_a_memory_that_answers_from_five_tokens_back_is_found_and_shuffled_keys_are_not() -> None:
    torch.manual_seed(1)
    k = torch.eye(T)[None, :, None].expand(2, T, 2, T)  # a key of its own for every token
    near = measure(seen(k.roll(5, 1), k)).values
    bands = dict(zip(distance_labels(T), near["share by distance"][0], strict=True))
    assert near["distance"][0] == pytest.approx([5, 5])
    assert bands["4 to 7"] == pytest.approx(1)
    shuffled = measure(seen(k.roll(5, 1), k[:, torch.randperm(T)], (0.0, 0.0))).values
    assert shuffled["median distance"] > 20


def test_biases_of_a_real_memory_are_read_off_it_and_skipped_tokens_let_no_time_pass() -> None:
    model = thinking(capacities=(1.0, 0.5), n_passes=2, burst=0)
    rates = torch.tensor([math.log(2) / 10, math.log(2) / 40])
    with torch.no_grad():
        memory = model.temporal[0].memory
        memory.forget.weight.zero_()
        memory.forget_bias_H.copy_(rates.expm1().log())
    ids_BT = torch.randint(0, 40, (2, T))
    values = look(model, ids_BT, ["memory", "depth"])
    lives, share = values["memory"].values["half-life"], values["depth"].values["share of tokens"]
    assert lives[0] == pytest.approx([10, 40], rel=1e-4)
    assert lives[1] == pytest.approx(np.array([10, 40]) / share[2], rel=1e-4)
    assert values["memory"].labels["step"] == ("1", "2 (pass 2)")


@pytest.mark.parametrize("config", [{}, {"n_shared": 2}, {"paths": ("memory",), "path_share": 0.5}])
def test_the_norm_is_that_of_what_the_memory_holds(config: dict[str, object]) -> None:
    model, held = thinking(n_passes=2, **config), []
    for temporal in model.temporal:
        temporal.memory.register_forward_hook(lambda module, args, out: held.append(out[1].flatten(2).norm(dim=-1)))
    values = look(model, torch.randint(0, 40, (3, T)), ["memory"])["memory"].values
    assert values["norm"] == pytest.approx(torch.stack(held[-len(values["norm"]) :]).mean(1).numpy(), rel=1e-3)


def test_write_strength_is_that_of_the_tokens_that_take_part() -> None:
    model = thinking(regions=("temporal",), capacities=(1.0, 0.5), n_passes=2)
    with torch.no_grad():
        model.temporal[0].memory.write.weight.zero_()
        model.temporal[0].memory.write_bias_H.copy_(torch.tensor([0.0, math.log(3)]))
    values = look(model, torch.randint(0, 40, (2, 64)), ["memory"])["memory"].values
    assert values["write"] == pytest.approx(np.array([[0.5, 0.75]] * 2), rel=1e-5)


def test_an_untrained_memory_keeps_as_long_as_it_was_made_to_and_two_tokens_are_enough() -> None:
    torch.manual_seed(2)
    values = look(thinking(), torch.randint(0, 40, (4, T)), ["memory"])["memory"].values
    assert values["half-life"][0, 0] > 10 * values["half-life"][0, 1]
    assert values["norm"].min() > 0
    short = look(thinking(), torch.randint(0, 40, (1, 2)), ["memory"])["memory"].values
    assert np.isfinite(short["distance"][0]).all() and short["distance"][0].max() <= 1


def test_a_memory_that_keeps_all_but_for_resets_is_told_from_one_that_fades() -> None:
    observed = seen(torch.ones(2, T, 2, 8), torch.ones(2, T, 2, 8))
    forget_BTH = torch.full((2, T, 2), 0.01)
    forget_BTH[:, ::16, 0] = 3.0
    measured = measure(replace(observed, taps={**observed.taps, "steps.1.memory.forget": forget_BTH})).values
    assert measured["resets"][0] == pytest.approx([1 / 16, 0])
    assert measured["half-life at most tokens"][0] == pytest.approx([math.log(2) / 0.01] * 2, rel=1e-5)
    assert measured["half-life"][0, 0] == pytest.approx(math.log(2) / (3 / 16 + 0.01 * 15 / 16), rel=1e-5)


def test_nothing_forgotten_is_for_ever() -> None:
    same = torch.ones(2, T, 2, 8)
    assert np.isinf(measure(seen(same, same, (0.0, 0.0))).values["half-life"]).all()
