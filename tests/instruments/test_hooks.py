"""Hooks from Python read, replace and patch what passes taps, in whole forwards and while generating."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import homunculi
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.subject import add_noise
from homunculi.instruments.hooks import hooked, patch_from, run_with_cache, run_with_hooks, taps_of
from homunculi.models import build
from homunculi.train.interventions import intervene

IDS = torch.randint(30, (2, 11), generator=torch.Generator().manual_seed(0))


def model(name: str = "gpt", *texts: str, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "d_model": 16, "n_heads": 2, "max_seq_len": 16} | fields
    built = build(name, **shape)
    add_noise(built, 0)
    intervene(built, texts)
    return built.eval().requires_grad_(False)


def test_a_cache_holds_what_was_asked_for_and_the_output_is_the_models() -> None:
    built = model(n_blocks=2)
    output, seen = run_with_cache(built, IDS, "steps.*.resid_post", "embed")
    assert list(seen) == ["embed", "steps.0.resid_post", "steps.1.resid_post"]
    assert torch.equal(output.logits, built(IDS).logits)
    assert run_with_cache(built, [1, 2, 3], "embed")[1]["embed"].shape == (1, 3, 16)
    assert len(run_with_cache(built, IDS)[1]) == len(taps_of(built))


def test_the_package_offers_them_by_name() -> None:
    built = model(n_blocks=1)
    assert homunculi.run_with_cache(built, IDS, "embed")[1]["embed"].shape == (2, 11, 16)
    with homunculi.changed(built, ["steps.0.mlp.out=neutral:0"]):
        silent = built(IDS).logits
    assert not torch.equal(silent, built(IDS).logits)
    assert {"changed", "hooked", "patch_from", "run_with_cache", "run_with_hooks"} <= set(dir(homunculi))


def test_a_hook_replaces_for_one_forward_and_is_gone_afterwards() -> None:
    built = model(n_blocks=2)
    before = built(IDS).logits
    changed = run_with_hooks(built, IDS, {"steps.*.mlp.out": lambda tensor, name: tensor * 0}).logits
    assert not torch.allclose(changed, before)
    assert torch.equal(built(IDS).logits, before)


def test_hooks_act_in_each_step_of_generation_and_end_with_an_error_inside() -> None:
    built = model(n_blocks=1)
    heard: list[tuple[int, ...]] = []

    def only(tensor: Tensor, name: str) -> Tensor:
        heard.append(tuple(tensor.shape))
        return torch.zeros_like(tensor).index_fill(-1, torch.tensor([7]), 9.0)

    with hooked(built, {"readout.logits": only}):
        drawn = [int(token) for token in generate(built, [[1, 2]], 3, Sampling(temperature=0))]
    assert drawn == [7, 7, 7] and heard == [(1, 2, 30), (1, 1, 30), (1, 1, 30)]
    with pytest.raises(RuntimeError, match="inside"), hooked(built, {"embed": only}):
        raise RuntimeError("inside")
    before = len(heard)
    built(IDS)
    assert len(heard) == before


def test_inner_hooks_see_what_outer_ones_leave_and_listeners_what_all_leave() -> None:
    built = model("ncn", "control.gain=neutral:2.0")
    heard: list[float] = []

    def read(tensor: Tensor, name: str) -> None:
        heard.append(float(tensor.flatten()[0]))

    recording = Recording("control.gain")
    outer, inner = {"control.gain": lambda t, n: t + 1}, {"control.gain": lambda t, n: (read(t, n), t * 10)[1]}
    with hooked(built, outer), hooked(built, inner):
        built(IDS, recording)
    assert heard == [3.0] and float(recording["control.gain"].flatten()[0]) == 30.0


def test_patching_everything_after_a_step_gives_the_other_texts_answer() -> None:
    built, other = model(n_blocks=2), IDS.flip(0)
    _, seen = run_with_cache(built, other, "steps.0.resid_post", "steps.1.resid_post")
    patched = run_with_hooks(built, IDS, patch_from(seen, "steps.1.*")).logits
    torch.testing.assert_close(patched, built(other).logits)
    some = run_with_hooks(built, IDS, patch_from(seen, "steps.1.*", positions=[4])).logits
    torch.testing.assert_close(some[:, 4], built(other).logits[:, 4])
    torch.testing.assert_close(some[:, :4], built(IDS).logits[:, :4])


def test_where_few_tokens_pass_others_are_told_who() -> None:
    shape = {"n_slots": 4, "n_passes": 2, "capacities": (1.0, 0.5), "burst": 1}
    tap = "steps.2.mlp.out"
    plain, moved = model("mor", **shape), model("mor", f"{tap}=shuffled", **shape)
    alone = run_with_cache(moved, IDS, tap)[1][tap]
    with hooked(moved, {"steps.0.mlp.out": lambda tensor, name: None}):
        assert torch.equal(run_with_cache(moved, IDS, tap)[1][tap], alone)
    from homunculi.experiments.changing import changed

    with changed(plain, ["embed=scaled:1"]), changed(plain, [f"{tap}=shuffled"]):
        assert torch.equal(run_with_cache(plain, IDS, tap)[1][tap], alone)


def test_mistakes_are_one_clear_line() -> None:
    built = model(n_blocks=1)
    with pytest.raises(InputError, match=r"tap steps\.0\.mpl\.out: no such tap; near: .*mlp\.out"):
        run_with_cache(built, IDS, "steps.0.mpl.out")
    with pytest.raises(InputError, match="no such tap"), hooked(built, {"nothing": lambda t, n: None}):
        pass
    _, seen = run_with_cache(built, IDS, "embed")
    with pytest.raises(InputError, match=r"what was kept has shape \(2, 11, 16\), what passes \(2, 5, 16\)"):
        run_with_hooks(built, IDS[:, :5], patch_from(seen))
    with pytest.raises(InputError, match=r"positions \[12\] do not all lie in the first 11 tokens"):
        run_with_hooks(built, IDS, patch_from(seen, positions=[12]))
