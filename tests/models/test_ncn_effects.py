"""What the controller's further signals do inside a block: heads, scale and shift, activation, dropout, whole blocks;
what gain does to gradients; what monitors tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.taps import Recording, Taps
from homunculi.models.ncn import NCN
from homunculi.models.ncn.monitors import SAMPLED, directions
from homunculi.train.loss import TrainingLoss
from tests.models.controlled import fresh, ids, moved, set_to

BRANCHES = ("steps.0.resid_pre", "steps.0.attn.*", "steps.0.mlp.*", "steps.0.resid_mid", "control.*")


def seen(model: NCN, *patterns: str, **others: Any) -> Recording:
    recording = Recording(*(patterns or BRANCHES), others=others.get("others"))
    model(ids(), recording)
    return recording


# Effects inside a block.


def test_a_head_gate_scales_what_its_head_found() -> None:
    model = moved(signals=("heads",))
    open_heads = seen(model, *BRANCHES, others={"control.heads": set_to(1.0)})
    gated = seen(model)
    assert gated["control.heads"].shape == (2, 16, 4, 2)
    factor_BTH1 = gated["control.heads"][..., 0][..., None]
    torch.testing.assert_close(gated["steps.0.attn.z"], factor_BTH1 * open_heads["steps.0.attn.z"])
    assert not torch.allclose(gated["steps.0.attn.out"], open_heads["steps.0.attn.out"])


def test_a_closed_head_is_a_head_that_is_not_there() -> None:
    model = moved(signals=("heads",), n_blocks=1)

    def close_first(tensor: Tensor, name: str) -> Tensor:
        return (torch.arange(4)[:, None] != 0).to(tensor.dtype).expand_as(tensor).clone()

    closed = model(ids(), Taps({"control.heads": close_first})).logits
    twin = model.neutral_twin()
    with torch.no_grad():
        twin.blocks[0].attn.o.weight[:, :4] = 0.0  # what the first head writes
    torch.testing.assert_close(closed, twin(ids()).logits)


def test_directions_scale_and_shift_both_norms() -> None:
    model = moved(signals=("film",), film_rank=3)
    block, found = model.blocks[0], seen(model)
    c_BTR = found["control.film"][..., 0] - 1
    n_BTD = block.attn_norm(found["steps.0.resid_pre"])
    scale, shift = (c_BTR @ block.film.attn.weight.T).chunk(2, -1)
    heard = n_BTD * (1 + scale) + shift
    torch.testing.assert_close(found["steps.0.attn.q"].flatten(2), block.attn.q(heard))
    n_BTD = block.mlp_norm(found["steps.0.resid_mid"])
    scale, shift = (c_BTR @ block.film.mlp.weight.T).chunk(2, -1)
    torch.testing.assert_close(found["steps.0.mlp.pre"], block.mlp["gate"](n_BTD * (1 + scale) + shift))
    assert c_BTR.abs().max() > 0.05 and scale.abs().max() > 0.05


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_beta_bends_the_activation(activation: Any) -> None:
    model = moved(signals=("beta",), activation=activation)
    found, block = seen(model), model.blocks[0]
    pre_BTM, beta_BT1 = found["steps.0.mlp.pre"], found["control.beta"][..., :1]
    if activation == "swiglu":
        n_BTD = block.mlp_norm(found["steps.0.resid_mid"])
        expected = pre_BTM * torch.sigmoid(beta_BT1 * pre_BTM) * block.mlp["in"](n_BTD)
    else:
        expected = pre_BTM * 0.5 * (1 + torch.erf(beta_BT1 * pre_BTM / math.sqrt(2)))
    torch.testing.assert_close(found["steps.0.mlp.post"], expected)
    straight = seen(model, *BRANCHES, others={"control.beta": set_to(1.0)})["steps.0.mlp.post"]
    assert not torch.allclose(found["steps.0.mlp.post"], straight)


# Dropout.


def shares_dropped(model: NCN, factor: float) -> list[float]:
    """Share of the numbers of both updates of block 0 that a factor of the rate leaves out, and whether the rest is
    scaled up."""
    torch.manual_seed(0)
    hooks = {"control.dropout": set_to(factor)}
    found = seen(model.train(), *BRANCHES, "steps.0.resid_post", others=hooks)
    found_shares = []
    for branch, before, after in (("attn", "resid_pre", "resid_mid"), ("mlp", "resid_mid", "resid_post")):
        wrote = found[f"steps.0.{after}"] - found[f"steps.0.{before}"]
        kept, out = wrote.abs() > 1e-12, found[f"steps.0.{branch}.out"]
        torch.testing.assert_close(wrote[kept], out[kept] / (1 - 0.2 * factor))
        found_shares.append(1 - kept.double().mean().item())
    return found_shares


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_the_dropout_rate_is_the_setting_times_the_factor(factor: float) -> None:
    model = moved(signals=("dropout",), dropout=0.2, d_model=64, n_heads=4)
    assert shares_dropped(model, factor) == pytest.approx([0.2 * factor] * 2, abs=0.03)


def test_evaluation_drops_nothing_and_does_not_ask() -> None:
    model = moved(signals=("gain", "dropout"), dropout=0.2)
    twin = fresh(signals=("gain",)).double()
    names = twin.state_dict().keys()
    assert list(seen(model, "control.*")) == ["control.pool", "control.hidden", "control.gain"]
    assert set(model.eval()(ids()).statistics) >= {"signal/gain/mean"}
    assert names == model.state_dict().keys()
    assert torch.equal(model(ids()).logits, model(ids()).logits)


def test_a_rate_learns_to_fall_where_dropping_hurts() -> None:
    """The gradient of the soft mask has the sign of the true difference between rates."""
    model = fresh(signals=("dropout",), dropout=0.3, homeostasis=0.0).train()
    text = ids(8)
    loss_of, optimizer = TrainingLoss(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        torch.manual_seed(step)
        loss_of(text).cross_entropy.backward()
        optimizer.step()
        optimizer.zero_grad()
    rate = Recording("control.dropout")
    model(text, rate)
    assert rate["control.dropout"].mean() < 0.9


# Whole blocks.


def blocks_closed(closed: float) -> Any:
    """The second block's gain is that number for two tokens of three."""

    def write(tensor: Tensor, name: str) -> Tensor:
        gain = torch.full_like(tensor, 1.2)
        gain[:, torch.arange(16) % 3 != 0, 1] = closed
        return gain

    return write


def test_a_gain_under_its_threshold_leaves_the_stream_as_it_is() -> None:
    model = moved(skip_block_below=0.3)
    recording = Recording("steps.1.resid_*", others={"control.gain": blocks_closed(0.2)})
    output = model(ids(), recording)
    open_T = torch.arange(16) % 3 == 0
    before, after = recording["steps.1.resid_pre"], recording["steps.1.resid_post"]
    assert torch.equal(before[:, ~open_T], after[:, ~open_T])
    assert not torch.isclose(before[:, open_T], after[:, open_T]).all(-1).any()
    assert output.statistics["depth"].item() == pytest.approx(1 + 6 / 16)
    computing = moved(skip_block_below=0.0)
    zero = computing(ids(), Taps({"control.gain": blocks_closed(0.0)})).logits
    torch.testing.assert_close(output.logits, zero, rtol=1e-12, atol=1e-12)


def test_a_closed_block_leaves_the_feed_forward_part_out_and_is_still_attended_to() -> None:
    model = moved(skip_block_below=0.3)
    rows: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: rows.append(out.numel() // out.shape[-1]))
    closed = model(ids(), Taps({"control.gain": blocks_closed(0.2)})).logits
    assert rows == [32, 2 * 6]
    changed = ids()
    changed[:, 1] = (changed[:, 1] + 1) % 23  # a token that the second block leaves alone
    assert not torch.allclose(model(changed, Taps({"control.gain": blocks_closed(0.2)})).logits[:, 2:], closed[:, 2:])


# What gain does to gradients.


def test_the_gradient_of_weights_is_that_of_the_update_times_the_gain() -> None:
    """dL/dW of both maps that write: Σ over tokens of factor · (dL/dx) zᵀ, with the gradient measured at the stream."""
    model = moved()
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, name: str) -> None:
        tensor.retain_grad()
        kept[name] = tensor

    model(ids(), Taps({"steps.1.*": keep, "control.*": keep})).logits.square().sum().backward()
    gain, gate = (kept[f"control.{name}"][..., 1:] for name in ("gain", "gate"))
    block = model.blocks[1]
    for weight, site, after, factor in (
        (block.attn.o.weight, "attn.z", "resid_mid", gain),
        (block.mlp["out"].weight, "mlp.post", "resid_post", gain * gate),
    ):
        upstream = kept[f"steps.1.{after}"].grad
        expected = torch.einsum("btd,btm->dm", factor * upstream, kept[f"steps.1.{site}"].flatten(2))
        torch.testing.assert_close(weight.grad, expected)


def clamped(gain: float) -> Any:
    """The second block's gain is that number."""
    return lambda tensor, name: tensor.detach().clone().index_fill_(2, torch.tensor([1]), gain)


@pytest.fixture(scope="module")
def shielded() -> dict[float, tuple[float, float]]:
    """A model has learned to count up, then one block learns to count down while its gain is clamped at a number: size
    of the block's gradient, and how much worse the model counts up, by that number."""
    model = fresh(signals=("gain",)).train()
    up = torch.arange(16).repeat(4, 1) % 8
    loss_of = TrainingLoss(model)
    learning = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss_of(up).cross_entropy.backward()
        learning.step()
        learning.zero_grad()
    block = model.blocks[1]
    learned = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    before, found = loss_of(up).cross_entropy.item(), {}
    for gain in (1.0, 0.1, 0.01, 0.001, 0.0):
        model.always = Taps({"control.gain": clamped(gain)})
        gradients = torch.autograd.grad(loss_of(up.flip(1)).cross_entropy, list(block.parameters()))
        del model.always
        with torch.no_grad():
            for parameter, gradient in zip(block.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
        size = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
        found[gain] = (size, loss_of(up).cross_entropy.item() - before)
        block.load_state_dict(learned)
    return found


def test_a_small_gain_shields_what_was_learned_from_another_task(shielded: dict[float, tuple[float, float]]) -> None:
    """Two-task interference: at gain 0 the other task's gradient and what is forgotten are exactly 0, near 0 the
    gradient is proportional to the gain, and the more is forgotten the larger it is."""
    assert shielded[0.0] == (0.0, 0.0)
    assert shielded[0.01][0] / shielded[0.001][0] == pytest.approx(10, rel=0.05)
    forgotten = [shielded[gain][1] for gain in (1.0, 0.1, 0.01)]
    assert forgotten[0] > 0.01 > forgotten[1] > 100 * forgotten[2]


# Monitors.


def test_steps_from_token_to_token_tell_phasic_control_from_tonic() -> None:
    def drifting(tensor: Tensor, name: str) -> Tensor:
        return torch.linspace(0.5, 1.5, 16).to(tensor)[None, :, None].expand_as(tensor).clone()

    def alternating(tensor: Tensor, name: str) -> Tensor:
        return (0.5 + torch.arange(16) % 2).to(tensor)[None, :, None].expand_as(tensor).clone()

    hooks = {"control.gain": drifting, "control.gate": alternating}
    found = {name: value.item() for name, value in moved()(ids(), Taps(hooks)).statistics.items()}
    assert found["signal/gain/phasic"] / found["signal/gain/variance"] < 0.05
    assert found["signal/gate/phasic"] == pytest.approx(2 * found["signal/gate/variance"])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_directions_count_independent_signals(n: int) -> None:
    drawn = torch.randn(1, SAMPLED, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.linalg.qr(drawn - drawn.mean(1, keepdim=True)).Q
    copies = drawn.repeat(1, 1, 4) * torch.linspace(0.1, 3, 4 * n).to(drawn)
    assert directions([copies]).item() == pytest.approx(n)
    assert directions([torch.ones(1, SAMPLED, n)]).item() == 0.0


def test_growth_is_doublings_of_the_stream_a_block() -> None:
    def doubling(tensor: Tensor, name: str) -> Tensor:
        return tensor * 2

    plain = moved()(ids()).statistics["growth"]
    grown = moved()(ids(), Taps({"steps.1.resid_post": doubling})).statistics["growth"]
    assert grown - plain == pytest.approx(1 / 2)  # one doubling over two blocks


def test_share_of_refreshes() -> None:
    found = fresh(pooling="refreshed", refresh_every=5)(ids()).statistics["refreshed"]
    assert found == pytest.approx(3 / 15)
    assert 0 < moved(pooling="adiabatic", refresh_above=0.7)(ids()).statistics["refreshed"] < 1
    assert "refreshed" not in fresh()(ids()).statistics


def test_the_start_is_neither_sharp_nor_throttled() -> None:
    """The published form begins with precisions near 0.70 and gates near 0.50; this one with exactly 1 everywhere."""
    statistics = fresh(signals=("gain", "precision", "gate", "heads", "film", "beta"))(ids()).statistics
    means = {name: value.item() for name, value in statistics.items() if name.endswith("/mean")}
    assert len(means) == 6 and set(means.values()) == {1.0}
    others = [
        v.item() for n, v in statistics.items() if n.endswith(("/variance", "/saturated", "/phasic", "/directions"))
    ]
    assert len(others) == 19 and not any(others)


def test_soft_masks_give_the_gradient_of_the_expected_update() -> None:
    """By the chain rule d/dp E[u · kept / (1 − p)] is 0: the straight-through estimate averages to about that."""
    model = moved(signals=("dropout",), dropout=0.25)
    block = model.blocks[0].train()
    torch.manual_seed(0)
    factor = torch.ones(1, 1, 1, dtype=torch.float64, requires_grad=True)
    update = torch.ones(1, 1, 400_000, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(block._dropped(update, factor).mean(), factor)
    assert gradient.item() == pytest.approx(0.0, abs=0.02)
    assert F.dropout(update, 0.25).mean() == pytest.approx(block._dropped(update, factor).mean().item(), abs=0.01)
