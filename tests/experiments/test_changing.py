"""Changes hold, scale, silence and patch signals, and force depths, in whole forwards and in cached decoding alike."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.changing import changed, depths_of, parts_of, regions_of, signals_of
from homunculi.experiments.subject import add_noise
from homunculi.instruments.hooks import run_with_cache
from homunculi.models import build, get

IDS = torch.randint(30, (2, 13), generator=torch.Generator().manual_seed(0))
LOOPED = [
    (name, dict(variant)) for name in ("mor", "homunculi", "recursive") for variant in get(name).variants if variant
]


def model(name: str, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    built = build(name, **({"vocab_size": 30, "d_model": 16, "n_heads": 2, "max_seq_len": 16} | fields))
    add_noise(built, 0)
    return built.eval().requires_grad_(False)


def decoded(built: LanguageModel, lengths: tuple[int, int] = (9, 7)) -> Tensor:
    """The largest difference between a whole forward and decoding of rows of different lengths."""
    whole, n = built(IDS).logits, torch.tensor(lengths)
    cache = built.new_cache(2, 16)
    cache.announce(n)
    said = built(IDS[:, : max(lengths)], cache=cache).logits
    cache.advance(n)
    worst = [(said[row, :k] - whole[row, :k]).abs().max() for row, k in enumerate(lengths)]
    for t in range(4):
        step = torch.stack([IDS[row, k + t] for row, k in enumerate(lengths)])[:, None]
        logits = built(step, cache=cache).logits
        cache.advance(1)
        worst += [(logits[row, 0] - whole[row, k + t]).abs().max() for row, k in enumerate(lengths)]
    return torch.stack(worst).max()


@pytest.mark.parametrize(("name", "fields"), LOOPED)
def test_a_depth_is_taken_by_every_token_whole_and_decoded(name: str, fields: dict[str, Any]) -> None:
    built = model(name, **fields)
    depths, before = depths_of(built), built(IDS).logits
    assert len(depths) > 1
    answers = []
    for depth in depths:
        with changed(built, [f"depth={depth}"]):
            output, seen = run_with_cache(built, IDS)
            taken = [t for name, t in seen.items() if name.endswith("router.taking")]
            assert all(t.all() or not t.any() for t in taken)
            if taken:
                assert max(depths) - len(taken) + sum(int(t.all()) for t in taken) == depth
            assert decoded(built) < 1e-5
            answers.append(output.logits)
    assert all(not torch.allclose(a, b) for a, b in pairwise(answers))
    assert torch.equal(built(IDS).logits, before) and decoded(built) < 1e-5


def test_a_depth_of_none_is_refused_and_a_loop_takes_more_than_it_was_trained_for() -> None:
    with pytest.raises(InputError, match="depth=2: this model has no passes"), changed(model("gpt"), ["depth=2"]):
        pass
    routed = model("mor", n_slots=5, capacities=(1.0, 1.0, 0.5), router="token_choice")
    with pytest.raises(InputError, match="depth=1: this model can take 2, 3 passes"), changed(routed, ["depth=1"]):
        pass
    with pytest.raises(InputError, match="a depth is a number"), changed(routed, ["depth=two"]):
        pass
    loop = model("recursive", n_passes=2)
    with pytest.raises(InputError, match="can take 1, 2 passes, and others up to 256"), changed(loop, ["depth=99999"]):
        pass
    with changed(loop, ["depth=4"]):
        deeper = loop(IDS).logits
    torch.testing.assert_close(deeper, loop.with_passes(4)(IDS).logits)  # type: ignore[operator]


def test_a_depth_holds_at_the_edge_of_a_trained_threshold_and_leaves_the_router_as_it_was() -> None:
    built = model("mor", n_slots=5, capacities=(1.0, 0.5, 0.5), burst=0)
    router: Any = built.router
    router.threshold_R.fill_(30.0)
    quotas = router.quotas
    with pytest.raises(RuntimeError, match="stop"), changed(built, ["depth=3"]):
        assert run_with_cache(built, IDS, "steps.2.router.taking")[1]["steps.2.router.taking"].all()
        raise RuntimeError("stop")
    assert router.quotas is quotas


def test_signals_are_held_and_scaled_in_order() -> None:
    built = model("ncn")
    with changed(built, ["control.gain=neutral:3", "control.gain=scaled:0.5"]):
        assert (run_with_cache(built, IDS, "control.gain")[1]["control.gain"] == 1.5).all()
        assert decoded(built) < 1e-5
    with changed(built, ["control.gate=shuffled"]):
        built(IDS)
        with pytest.raises(InputError, match="change: no cache and so no samples: a shuffled signal"):
            decoded(built)


def test_what_an_architecture_declares_can_be_changed() -> None:
    gpt, ncn, flagship = model("gpt"), model("ncn"), model("homunculi")
    assert not signals_of(gpt) and [one.name for one in regions_of(gpt)] == ["attention", "feed-forward"]
    assert {one.title: one.neutral for one in signals_of(ncn)}.items() >= {"gain": 1.0, "precision": 1.0}.items()
    assert [one.name for one in regions_of(flagship)] == ["attention", "memory", "plan", "experts", "feed-forward"]
    for one in signals_of(flagship):
        assert one.low <= one.neutral <= one.high
        with changed(flagship, [f"{one.pattern}=neutral:{one.neutral}"]):
            assert torch.isfinite(flagship(IDS).logits).all()
    for region in regions_of(flagship):
        with changed(flagship, [f"{region.pattern}=neutral:{region.value}"]):
            silenced = flagship(IDS).logits
        with changed(flagship, [f"{region.name}=silenced"]):
            assert torch.equal(flagship(IDS).logits, silenced)
        assert not torch.allclose(silenced, flagship(IDS).logits)


def test_a_region_of_several_signals_is_silenced_at_their_neutral_values() -> None:
    built = model("homunculi")
    with changed(built, ["prefrontal=silenced"]):
        seen = run_with_cache(built, IDS, "steps.*.prefrontal.*")[1]
    assert (seen["steps.1.prefrontal.plan"] == 0).all() and (seen["steps.1.prefrontal.open_heads"] == 1).all()
    assert parts_of(built) == ["temporal", "amygdala", "prefrontal", "packet"]
    assert parts_of(model("ncn")) == ["controller"] and not parts_of(model("gpt"))
    for name in parts_of(built):
        with changed(built, [f"{name}=silenced"]):
            assert torch.isfinite(built(IDS).logits).all()
    said = r"cerebellum=silenced: this model has .*prefrontal"
    with pytest.raises(InputError, match=said), changed(built, ["cerebellum=silenced"]):
        pass


def test_another_texts_signals_are_patched_in() -> None:
    built = model("ncn")
    _, source = run_with_cache(built, IDS.flip(1), "control.*")
    with changed(built, ["control.gain=patched"], source):
        assert torch.equal(run_with_cache(built, IDS, "control.gain")[1]["control.gain"], source["control.gain"])
        with pytest.raises(InputError, match="what was kept has shape"):
            built(IDS[:, :4])
    with pytest.raises(InputError, match="no other text"), changed(built, ["control.gain=patched"]):
        pass


@pytest.mark.parametrize("text", ["", "control.gain", "control.gain=louder", "=neutral:1", "control.gain=neutral:"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"change: .*write PATTERN=neutral:NUMBER"), changed(model("ncn"), [text]):
        pass


def test_no_such_tap_names_near_ones() -> None:
    said = r"change: tap control\.gian: no such tap; near: .*gain"
    with pytest.raises(InputError, match=said), changed(model("ncn"), ["control.gian=neutral:1"]):
        pass
