"""The modulated transformer: neutral start, what signals do, control, caches, monitors, skipping, plasticity."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording, Taps
from homunculi.errors import InputError
from homunculi.models import build
from homunculi.models.ncn import MAPS, VARIANTS
from homunculi.models.ncn.config import FACTORS
from homunculi.train.loss import TrainingLoss
from tests.models.controlled import OPTIONS, POOLINGS, TINY, fresh, ids, moved, set_to


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"signals": ("gain", "dopamine")}, "model.signals: dopamine"),
        ({"signals": ("gain", "gain")}, "model.signals"),
        ({"signals": (), "n_controls": 2}, "model.n_controls"),
        ({"signals": (), "instruction_tokens": 2}, "model.instruction_tokens"),
        ({"signals": (), "statistics": ("change",)}, "model.statistics"),
        ({"signals": (), "recurrence": "gated"}, "model.recurrence"),
        ({"signals": ("gain", "beta"), "activation": "relu2"}, "model.signals: beta only scales relu2"),
        ({"signals": ("dropout",)}, "model.dropout: 0.0 cannot be changed"),
        ({"signals": ("dropout",), "dropout": 0.5}, "model.dropout"),
        ({"statistics": ("entropy", "mood")}, "model.statistics: mood"),
        ({"statistics": ("change",), "n_blocks": 1}, "model.statistics"),
        ({"instruction_tokens": 17}, "model.instruction_tokens"),
        ({"instruction_tokens": -1}, "model.instruction_tokens"),
        ({"recurrence": "lstm"}, "model.recurrence: lstm is none of none, gated"),
        ({"pooling": "full"}, "model.pooling: full is none of causal, decay, refreshed, adiabatic, last; the form"),
        ({"refresh_above": 1.0}, "model.refresh_above"),
        ({"refresh_above": 0.0}, "model.refresh_above"),
        ({"film_rank": 0}, "model.film_rank"),
        ({"precision_per": "token"}, "model.precision_per"),
        ({"skip_block_below": 1.0}, "model.skip_block_below"),
        ({"signals": ("gate",), "skip_block_below": 0.1}, "model.skip_block_below"),
        ({"signals": ("gain",), "skip_below": 0.1}, "model.skip_below"),
        ({"signals": ("gate",), "plasticity": "gain"}, "model.plasticity"),
        ({"skip_below": 1.0}, "model.skip_below"),
        ({"skip_below": -0.1}, "model.skip_below"),
        ({"homeostasis": -1.0}, "model.homeostasis"),
        ({"n_pool_heads": 3}, "model.n_pool_heads"),
        ({"n_pool_heads": 0}, "model.n_pool_heads"),
        ({"d_control": 0}, "model.d_control"),
        ({"refresh_every": 0}, "model.refresh_every"),
        ({"n_controls": -1}, "model.n_controls"),
        ({"d_model": 0}, "model.d_model"),
        ({"n_heads": 3}, "model.n_heads"),
        ({"n_heads": 16}, "model.d_head"),
        ({"d_head": 5}, "model.d_head"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"rope_base": 1.0}, "model.rope_base"),
        ({"vocab_size": 0}, "model.vocab_size"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        build("ncn", **(TINY | config))
    assert field in str(error.value) and "\n" not in str(error.value)


def test_maps_are_exactly_one_at_zero_and_bounded() -> None:
    z = torch.linspace(-50, 50, 1001)
    bounds = dict.fromkeys(MAPS, (0, 2)) | dict.fromkeys(FACTORS, (0.25, 4))
    for name, (low, high) in bounds.items():
        assert MAPS[name](torch.zeros(1)).item() == 1.0
        signal = MAPS[name](z)
        assert signal.min() >= low and signal.max() <= high and (signal.diff() >= 0).all()
    assert MAPS["precision"](torch.tensor(1.3)) * MAPS["precision"](torch.tensor(-1.3)) == pytest.approx(1.0)


@pytest.mark.parametrize("config", [*POOLINGS, *OPTIONS, {"skip_below": 0.3}, {"n_controls": 2}])
def test_the_start_has_the_bits_of_the_plain_transformer_of_the_same_seed(config: dict[str, Any]) -> None:
    model = fresh(**config)
    torch.manual_seed(0)
    shape = TINY | {name: value for name, value in config.items() if name == "n_blocks"}
    plain = build("gpt", **{name: value for name, value in shape.items() if name != "d_control"}).eval()
    assert torch.equal(model(ids()).logits, plain(ids()).logits)
    assert torch.equal(model.neutral_twin()(ids()).logits, plain(ids()).logits)
    model.compute_dtype = plain.compute_dtype = torch.bfloat16
    assert torch.equal(model(ids()).logits, plain(ids()).logits)


def test_without_signals_nothing_is_added() -> None:
    model = fresh(signals=())
    output = model(ids())
    assert model.controller is None and not output.loss_terms and not output.statistics
    plain = build("gpt", **{name: value for name, value in TINY.items() if name != "d_control"})
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.budget().flops_per_token == plain.budget().flops_per_token


def test_the_twin_of_a_moved_model_differs_only_by_control() -> None:
    model = moved(skip_below=0.2, plasticity="gain", n_controls=1)
    twin = model.neutral_twin()
    assert not torch.allclose(model(ids()).logits, twin(ids()).logits)
    neutral = Taps({f"control.{name}": set_to(1.0) for name in MAPS})
    assert torch.equal(model(ids(), neutral).logits, twin(ids()).logits)


@pytest.mark.parametrize("config", [*POOLINGS, *OPTIONS])
def test_signals_move_with_training(config: dict[str, Any]) -> None:
    model = fresh(**config).train()
    loss_of, optimizer = TrainingLoss(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        losses = loss_of(ids(4))
        (losses.cross_entropy + losses.terms["homeostasis"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = model.eval()(ids())
    for name in model.config.signals:
        assert found.statistics[f"signal/{name}/variance"] > 0
        assert found.statistics[f"signal/{name}/mean"] != 1
    assert found.loss_terms["homeostasis"] > 0


@pytest.mark.parametrize("config", [*POOLINGS, *OPTIONS])
@pytest.mark.parametrize("sizes", [[16], [1] * 16, [5, 1, 10]])
def test_any_pieces_through_a_cache_give_the_full_forward(config: dict[str, Any], sizes: list[int]) -> None:
    model = moved(n_kv_heads=2, **config)
    cache, logits = model.new_cache(2, 16), []
    for piece in ids().split(sizes, dim=1):
        logits.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(logits, 1), model(ids()).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [*POOLINGS, *OPTIONS])
def test_rows_of_different_lengths_decode_as_alone(config: dict[str, Any]) -> None:
    model, rows = moved(**config), ids(2)
    whole, lengths_B = model(rows).logits, torch.tensor([9, 4])
    cache = model.new_cache(2, 16)
    cache.announce(lengths_B)
    model(rows[:, :9] * (torch.arange(9) < lengths_B[:, None]), cache=cache)
    cache.advance(lengths_B)
    for _ in range(6):
        at = cache.lengths_B.clone()
        logits = model(rows[torch.arange(2), at][:, None], cache=cache).logits
        cache.advance(1)
        torch.testing.assert_close(logits[:, 0], whole[torch.arange(2), at], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [*POOLINGS, *OPTIONS])
@pytest.mark.parametrize("training", [False, True])
def test_the_last_token_moves_no_earlier_logit(config: dict[str, Any], training: bool) -> None:
    model, rows = moved(**config).train(training), ids()
    before = model(rows).logits
    rows[:, -1] = (rows[:, -1] + 5) % 23
    after = model(rows).logits
    assert not torch.equal(after[:, -1], before[:, -1])
    if (
        model.config.skip_below or model.config.skip_block_below
    ) and not training:  # other tokens may be gathered: equal but for the order of sums
        torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=1e-12, atol=1e-12)
    else:
        assert (after - before)[:, :-1].abs().max() == 0


def test_documents_packed_in_a_row_give_what_they_give_apart() -> None:
    for config in [*POOLINGS, *OPTIONS]:
        model, row = moved(**config), ids(1)
        packed = model(row, documents_BT=torch.tensor([[0] * 5 + [1] * 1 + [2] * 10])).logits
        apart = torch.cat([model(part).logits for part in row.split([5, 1, 10], dim=1)], dim=1)
        torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-7)  # rotary tables are float32


def test_each_signal_does_what_its_name_says() -> None:
    model, seen = moved(), Recording("steps.*", "control.*")
    model(ids(), seen)
    gain, gate = (seen[f"control.{name}"][..., :1] for name in ("gain", "gate"))
    attended = seen["steps.0.resid_pre"] + gain * seen["steps.0.attn.out"]
    torch.testing.assert_close(seen["steps.0.resid_mid"], attended)
    torch.testing.assert_close(seen["steps.0.resid_post"], attended + gain * gate * seen["steps.0.mlp.out"])
    neutral = Recording("steps.0.attn.scores", others={"control.precision": set_to(1.0)})
    model(ids(), neutral)
    scaled = neutral["steps.0.attn.scores"] * seen["control.precision"][:, None, :, :1]
    torch.testing.assert_close(seen["steps.0.attn.scores"], scaled)


def test_each_head_may_have_its_own_precision() -> None:
    model = moved(precision_per="head")
    seen = Recording("control.precision", "steps.1.attn.scores", "steps.1.attn.z")
    logits = model(ids(), seen).logits
    assert seen["control.precision"].shape == (2, 16, 4, 2)
    torch.testing.assert_close(model(ids()).logits, logits)  # looking at scores takes the path without fusion
    plain = Recording("steps.0.attn.scores", others={"control.precision": set_to(1.0)})
    own = Recording("steps.0.attn.scores")
    model(ids(), plain)
    model(ids(), own)
    factor = seen["control.precision"][..., 0].transpose(1, 2)[..., None]
    torch.testing.assert_close(own["steps.0.attn.scores"], plain["steps.0.attn.scores"] * factor)


def test_order_of_signals_is_that_of_the_configuration() -> None:
    seen = Recording("control.*")
    moved(signals=("gate", "gain"))(ids(), seen)
    assert list(seen) == ["control.pool", "control.hidden", "control.gate", "control.gain"]
    assert seen["control.gate"].shape == (2, 16, 2)


def test_clamping_a_signal_is_felt_by_the_loss_term_and_the_monitors() -> None:
    model = fresh(homeostasis=0.5)
    output = model(ids(), Taps({"control.gain": set_to(1.95), "control.precision": set_to(0.26)}))
    assert output.loss_terms["homeostasis"].item() == pytest.approx(0.5 * (0.95**2 + 0.74**2))
    found = {name: value.item() for name, value in output.statistics.items()}
    assert found["signal/gain/mean"] == pytest.approx(1.95) and found["signal/gain/saturated"] == 1
    assert found["signal/precision/saturated"] == 1 and found["signal/gate/saturated"] == 0


def test_monitors_tell_variance_within_sequences_from_that_between() -> None:
    def by_row(tensor: Tensor, name: str) -> Tensor:
        return torch.tensor([0.5, 1.5]).double()[:, None, None].expand_as(tensor).clone()

    def by_token(tensor: Tensor, name: str) -> Tensor:
        return (0.5 + torch.arange(16) % 2)[None, :, None].expand_as(tensor).double().clone()

    model = moved()
    found = model(ids(), Taps({"control.gain": by_row, "control.gate": by_token})).statistics
    within_and_between = [found[f"signal/gain/{name}"].item() for name in ("variance", "between")]
    assert within_and_between == pytest.approx([0.25, 0.25])
    assert found["signal/gate/variance"].item() == pytest.approx(0.25) and found["signal/gate/between"] == 0


def test_decoding_computes_no_monitors() -> None:
    model = moved()
    output = model(ids(), cache=model.new_cache(2, 16))
    assert not output.statistics and not output.loss_terms


def test_controls_act_on_all_that_follows() -> None:
    model = moved(n_controls=2)
    neutral = model(ids()).logits
    model.set_controls([1.0, -2.0])
    assert not torch.allclose(model(ids()).logits, neutral)
    assert "controller.controls" in model.state_dict()
    model.set_controls(torch.zeros(2))
    assert torch.equal(model(ids()).logits, neutral)
    with pytest.raises(InputError, match="n_controls=2"):
        model.set_controls([1.0])
    with pytest.raises(InputError, match="n_controls=0"):
        moved().set_controls([1.0])


def gates(closed: float) -> Any:
    """Two tokens of three get that gate in every block, the others one of 1.3."""

    def write(tensor: Tensor, name: str) -> Tensor:
        return torch.where(torch.arange(16)[:, None] % 3 == 0, 1.3, closed).to(tensor.dtype).expand_as(tensor)

    return write


@pytest.mark.parametrize("training", [False, True])
def test_skipping_equals_a_gate_of_zero(training: bool) -> None:
    skipping = moved(skip_below=0.1).train(training)
    computing = moved().train(training)
    computing.load_state_dict(skipping.state_dict())
    zero = computing(ids(), Taps({"control.gate": gates(closed=0.0)})).logits
    output = skipping(ids(), Taps({"control.gate": gates(closed=0.05)}))
    torch.testing.assert_close(output.logits, zero, rtol=1e-12, atol=1e-12)
    assert output.statistics["skipped"] == pytest.approx(10 / 16)


def test_skipping_leaves_the_feed_forward_part_out() -> None:
    model = moved(skip_below=0.1)
    rows_seen: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: rows_seen.append(out.numel() // out.shape[-1]))
    model(ids(), Taps({"control.gate": gates(closed=0.05)}))
    assert rows_seen == [2 * 6, 2 * 6]
    model(ids(), Taps({"control.gate": set_to(0.0)}))
    assert rows_seen[2:] == [0, 0]
    model(ids(), Recording("steps.*.mlp.out", others={"control.gate": gates(closed=0.05)}))
    assert rows_seen[4:] == [32, 32], "a listener gets every token"


def test_closed_gates_learn_from_homeostasis() -> None:
    model = fresh(skip_below=0.5).train()
    assert model.controller is not None
    gate = 2  # bias of the first block's third signal
    with torch.no_grad():
        model.controller.out_bias[gate] = -4.0
    output = model(ids())
    (by_logits,) = torch.autograd.grad(output.logits.square().sum(), model.controller.out_bias, retain_graph=True)
    (by_term,) = torch.autograd.grad(output.loss_terms["homeostasis"], model.controller.out_bias)
    assert by_logits[gate] == 0 and by_term[gate] < 0


def test_plasticity_follows_the_mean_gain_of_blocks() -> None:
    model = moved(plasticity="gain")
    assert list(model.plasticity()) == ["blocks.0", "blocks.1"]
    assert all(value == 1 for value in model.plasticity().values())
    statistics = model(ids()).statistics
    for _ in range(500):
        model.after_update(statistics)
    reached = torch.stack(list(model.plasticity().values()))
    torch.testing.assert_close(reached, statistics["gain_of_blocks"], rtol=0.05, atol=0)
    assert "mean_gain_L" in model.state_dict()
    assert moved().plasticity() == {}


def test_the_controller_is_small() -> None:
    config = {"vocab_size": 50304, "d_model": 256, "n_heads": 8, "d_control": 64, "max_seq_len": 512}
    model, plain = build("ncn", **config), build("ncn", **config, signals=())
    assert 1 < model.budget().parameters / plain.budget().parameters < 1.01
    assert 1 < model.budget().flops_per_token / plain.budget().flops_per_token < 1.01
    assert model.budget().cache_bytes_per_token == plain.budget().cache_bytes_per_token


@pytest.mark.parametrize("config", VARIANTS)
def test_signals_stay_wide_where_activations_are_narrow(config: dict[str, Any]) -> None:
    model = fresh(**{"d_control": 8, **config})
    model.compute_dtype = torch.bfloat16
    seen = Recording("*")
    logits = model(ids(), seen).logits
    wide = {name for name, tensor in seen.seen.items() if tensor.dtype == torch.float32}
    said = {f"control.{name}" for name in model.config.signals if name != "dropout"}
    assert {re.sub(r"^steps\.\d\.", "", name) for name in wide} == said
    assert logits.dtype == torch.bfloat16
