"""The stream after each step is what later steps read, whatever tokens skip and gates weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from homunculi.core.schedule import Step, shared
from homunculi.core.taps import Recording
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look, observe
from homunculi.instruments.stream import BEGIN, NEEDS, START, TAPS, Loop, after_steps, before_steps, loops, states_of
from homunculi.models import build, names
from homunculi.models.registry import get

MINE = ["attention", "fixed_point", "lens", "pass_loss", "signals", "similarity", "sinks"]


def noisy(arch: str, **config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(arch, **({"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": 24} | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def some_ids(n_tokens: int = 24) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 40, (3, n_tokens))


ROUTED = [(arch, i) for arch in ("mor", "homunculi") for i in range(len(get(arch).variants))]


@pytest.mark.parametrize(("arch", "variant"), ROUTED)
def test_the_answer_is_read_from_the_stream_after_the_last_step(arch: str, variant: int) -> None:
    model, ids_BT = noisy(arch, **get(arch).variants[variant]), some_ids()
    seen = observe(model, ids_BT, [*TAPS, *NEEDS, "steps.*.resid_pre"])
    after = {site.step: found for site, found in after_steps(seen).items()}
    last = max(after)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(after[last].state_BTD), seen.logits_BTV, rtol=1e-4, atol=1e-4)
    if bool(after[last].present_BT.all()) and last - 1 in after:
        entering_BTD = seen.taps[f"steps.{last}.resid_pre"]
        torch.testing.assert_close(after[last - 1].state_BTD, entering_BTD, rtol=1e-4, atol=1e-4)


def test_a_token_that_skips_a_pass_keeps_its_state() -> None:
    model, ids_BT = noisy("mor", n_slots=4, n_passes=2, capacities=(1.0, 0.25), burst=1), some_ids()
    seen = observe(model, ids_BT, [*TAPS, *NEEDS, "steps.2.router.taking"])
    after = {site.step: found for site, found in after_steps(seen).items()}
    taking_BT = seen.taps["steps.2.router.taking"].bool()
    assert 0 < int(taking_BT.sum()) < taking_BT.numel()
    assert torch.equal(after[2].present_BT, taking_BT)
    assert torch.equal(after[2].state_BTD[~taking_BT], after[1].state_BTD[~taking_BT])
    assert not torch.isclose(after[2].state_BTD[taking_BT], after[1].state_BTD[taking_BT]).all(-1).any()


@pytest.mark.parametrize("arch", [arch for arch in names() if arch != "mor_published"])
@pytest.mark.parametrize("variant", [0, 1])
def test_steps_begin_with_what_the_one_before_left_but_for_columns_which_start_anew(arch: str, variant: int) -> None:
    variants = get(arch).variants or ({},)
    torch.manual_seed(0)
    model = build(arch, **({"vocab_size": 64} | dict(variants[variant % len(variants)]))).eval()
    seen = observe(model, some_ids(12), [*TAPS, *NEEDS, BEGIN])
    states = states_of(seen)
    begun = before_steps(seen, states)
    assert list(states) == [START, *begun]
    anew = [label for label, left in zip(begun, states.values(), strict=False) if begun[label] is not left]
    per_column = model.config.n_steps if arch == "vocab_columns" else len(model.schedule)
    assert anew == [str(step) for step in range(per_column, len(model.schedule), per_column)]
    assert all(torch.equal(begun[label], states[START]) for label in anew)


def test_loops_are_found_in_any_schedule() -> None:
    assert loops(shared("middle_cycle", 8, 3)) == [Loop(1, (2, 4, 6))]
    assert loops(shared("cycle", 3, 3)) == [Loop(0, (0, 1, 2))]
    assert loops(shared("sequence", 6, 3)) == [Loop(0, (0, 1, 2)), Loop(3, (3, 4, 5))]
    assert loops(shared("cycle", 3, 1)) == []
    skipping = tuple(Step(block, i, i) for i, block in enumerate((0, 1, 2, 1, 2, 1)))
    assert loops(skipping) == [Loop(1, (2, 4, 5))]


@pytest.mark.parametrize("arch", ["gpt", "ncn", "recursive", "mor", "homunculi"])
@pytest.mark.parametrize("n_tokens", [2, 24])
def test_short_rows_and_half_precision_are_measured(arch: str, n_tokens: int) -> None:
    ids_BT = some_ids(n_tokens)
    model = noisy(arch)
    whole = look(model, ids_BT, MINE, byte_lengths=tuple([3] * 40))
    model.compute_dtype = torch.bfloat16
    halves = look(model, ids_BT, MINE, byte_lengths=tuple([3] * 40))
    assert {"attention", "lens", "pass_loss", "similarity", "sinks"} <= set(whole)
    assert ("fixed_point" in whole) == (arch in ("recursive", "mor", "homunculi"))
    assert ("signals" in whole) == (arch in ("ncn", "homunculi"))
    assert set(halves) == set(whole)
    for name in whole:
        for value in halves[name].values.values():
            assert not np.isinf(value).any(), name
    assert halves["pass_loss"].values["loss"] == pytest.approx(whole["pass_loss"].values["loss"], rel=0.05)


def test_one_token_alone_says_little_and_breaks_nothing() -> None:
    assert set(look(noisy("recursive"), some_ids(1)[:1], MINE)) == {"attention", "fixed_point"}


def test_steps_that_did_not_run_are_absent() -> None:
    model, ids_BT = noisy("recursive"), some_ids()
    recording = Recording("embed", *NEEDS)
    with torch.no_grad():
        output = model(ids_BT, recording)
    kept = {name: t for name, t in recording.seen.items() if not name.startswith(("steps.5.", "steps.6."))}
    seen = Observation(model, ids_BT, kept, output.logits)
    from homunculi.instruments.fixed_point import measure

    found = measure(seen)
    assert found is not None
    assert found.labels["pass"] == ("1", "2")
    assert [site.step for site in after_steps(seen)] == [0, 1, 2, 3, 4, 7]


def test_steps_that_show_some_tokens_without_their_places_leave_nothing_to_compare() -> None:
    model = build("mor_published", vocab_size=40, d_model=32, n_heads=2, max_seq_len=24).eval()
    shapes = {tuple(t.shape[:2]) for t in observe(model, some_ids(), NEEDS).taps.values()}
    assert len(shapes) > 1
    found = set(look(model, some_ids()))
    assert {"attention", "activation"} <= found and not found & {
        "lens",
        "pass_loss",
        "similarity",
        "sinks",
        "fixed_point",
    }
