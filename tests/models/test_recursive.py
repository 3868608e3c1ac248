"""The recursive transformer: orders of blocks, loops that grow, random depth, truncated gradients, reuse of keys."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.schedule import show
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.models import build
from homunculi.models.files import load_model, save_model
from homunculi.models.recursive import CONTRACT_CONFIGS, DISTINCT_COUNTS, Config, Recursive, draw_passes
from homunculi.train.loss import TrainingLoss

TINY: dict[str, Any] = {"vocab_size": 23, "d_model": 16, "n_slots": 5, "n_heads": 4, "max_seq_len": 16}
LOOP: dict[str, Any] = {"injection": "add", "start": "zeros"}


def tiny(**config: Any) -> Recursive:
    torch.manual_seed(0)
    model = build("recursive", **(TINY | config)).double().eval()
    assert isinstance(model, Recursive)
    return model


def ids(n_rows: int = 2, n_tokens: int = 16) -> Tensor:
    return torch.randint(23, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


def steps_that_ran(model: Recursive, rows: Tensor | None = None) -> list[int]:
    seen = Recording("steps.*.resid_post")
    model(ids() if rows is None else rows, seen)
    return [int(name.split(".")[1]) for name in seen]


@pytest.mark.parametrize(
    ("sharing", "n_slots", "order"),
    [
        ("cycle", 6, [0, 1, 0, 1, 0, 1]),
        ("sequence", 6, [0, 0, 0, 1, 1, 1]),
        ("middle_cycle", 8, [0, 1, 2, 1, 2, 1, 2, 3]),
        ("middle_sequence", 8, [0, 1, 1, 1, 2, 2, 2, 3]),
    ],
)
def test_blocks_are_applied_in_the_order_of_their_scheme(sharing: str, n_slots: int, order: list[int]) -> None:
    model, applied = tiny(sharing=sharing, n_slots=n_slots), []
    for k, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, k=k: applied.append(k))
    assert steps_that_ran(model) == list(range(n_slots))
    assert applied == order == [step.block for step in model.schedule]
    assert len(model.blocks) == max(order) + 1


@pytest.mark.parametrize("signal", ["none", "embedding", "gain"])
@pytest.mark.parametrize("sharing", ["sequence", "cycle"])
def test_one_pass_with_the_weights_of_a_plain_transformer_gives_its_bits(sharing: str, signal: str) -> None:
    plain = build("gpt", vocab_size=23, d_model=16, n_blocks=3, n_heads=4, max_seq_len=16).eval()
    torch.manual_seed(0)
    config = TINY | {"sharing": sharing, "n_slots": 3, "n_passes": 1, "pass_signal": signal}
    model = build("recursive", **config).eval()
    assert model.load_state_dict(plain.state_dict(), strict=signal == "none").unexpected_keys == []
    assert torch.equal(model(ids()).logits, plain(ids()).logits)
    if signal == "none":
        budgets = (model.budget().to_json(), plain.budget().to_json())
        assert budgets[0] == budgets[1]


@pytest.mark.parametrize("signal", ["embedding", "gain"])
def test_a_neutral_signal_changes_no_bit_and_a_learnt_one_acts_on_its_pass(signal: str) -> None:
    with_signal, without = tiny(pass_signal=signal), tiny()
    without.load_state_dict(with_signal.state_dict(), strict=False)
    assert torch.equal(with_signal(ids()).logits, without(ids()).logits)
    with torch.no_grad():
        with_signal.signals[1] += torch.randn(16)
    before, after = Recording("steps.*.resid_post"), Recording("steps.*.resid_post")
    without(ids(), before)
    with_signal(ids(), after)
    same = [torch.equal(before[name], after[name]) for name in before]
    assert same == [True, True, False, False, False]


def test_a_gain_of_zero_skips_its_pass() -> None:
    model = tiny(pass_signal="gain", n_slots=8)
    with torch.no_grad():
        model.signals[1].zero_()
    seen = Recording("steps.*.resid_post")
    model(ids(), seen)
    assert torch.allclose(seen["steps.4.resid_post"], seen["steps.2.resid_post"], atol=1e-12)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"sharing": "cycle", "n_slots": 8}, "model.n_slots"),
        ({"sharing": "middle_cycle", "n_slots": 6}, "model.n_slots"),
        ({"sharing": "middle_sequence", "n_slots": 2}, "model.n_slots"),
        ({"sharing": "sequence", "n_slots": 2}, "model.n_slots"),
        ({"n_passes": 0}, "model.n_passes"),
        ({"start": "zeros"}, "model.start"),
        ({"start": "noise"}, "model.start"),
        ({"max_passes": 4}, "model.max_passes"),
        ({"pass_count": "random", "max_passes": 2}, "model.max_passes"),
        ({"pass_count": "random", "growth": "steps"}, "model.growth"),
        ({"growth": "loss", "growth_gain": -0.1}, "model.growth_gain"),
        ({"backprop_passes": 1}, "model.injection"),
        ({"backprop_passes": 1, "injection": "add", "sharing": "middle_sequence"}, "model.sharing"),
        ({"backprop_passes": 1, "injection": "add", "pass_signal": "gain"}, "model.pass_signal"),
        ({"backprop_passes": 1, "injection": "add", "kv_sharing": "first"}, "model.kv_sharing"),
        ({"n_heads": 3}, "model.n_heads"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
        ({"d_head": 5}, "model.d_head"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"vocab_size": 0}, "model.vocab_size"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        build("recursive", **(TINY | config))
    assert str(error.value).startswith(field) and "\n" not in str(error.value)


def test_an_impossible_number_of_steps_is_refused_with_one_that_fits() -> None:
    with pytest.raises(InputError, match="take 8, for example"):
        Config(sharing="middle_cycle", n_slots=9, n_passes=3)
    assert Config(sharing="middle_cycle", n_slots=8, n_passes=3).n_shared == 2


def test_growth_by_steps_runs_equal_stages_and_evaluates_what_it_trains() -> None:
    model = tiny(growth="steps", n_slots=8)
    assert steps_that_ran(model) == list(range(8)), "a new model is whole"
    depths = []
    for step in range(1, 7):
        model.before_update(step, 6)
        depths.append(model.depth)
        assert model.train()(ids()).statistics["passes"] == model.eval()(ids()).statistics["passes"] == model.depth
    assert depths == [1, 1, 2, 2, 3, 3]


def test_a_young_loop_skips_its_later_steps_and_keeps_the_name_of_the_last() -> None:
    model = tiny(growth="steps", n_slots=8)
    whole = model.budget(16)
    model.before_update(1, 6)
    assert steps_that_ran(model) == [0, 1, 2, 7]
    assert [step.block for step in model.schedule] == [0, 1, 2, 1, 2, 1, 2, 3]
    shallow = tiny(n_slots=4, n_passes=1)
    shallow.load_state_dict({n: t for n, t in model.state_dict().items() if n not in ("passes_now", "best_loss")})
    assert torch.equal(model(ids()).logits, shallow(ids()).logits)
    assert model.budget(16).flops_per_token == shallow.budget(16).flops_per_token < whole.flops_per_token
    cache, logits = model.new_cache(2, 16), []
    for piece in ids().split([5, 1, 10], dim=1):
        logits.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(logits, 1), shallow(ids()).logits, rtol=1e-9, atol=1e-9)


def test_growth_by_loss_adds_a_pass_whenever_the_gain_is_small() -> None:
    model = tiny(growth="loss", growth_gain=0.1)
    model.before_update(1, 100)
    depths = []
    for loss in (3.0, 2.5, 2.45, 2.6, 2.2, 2.19, 1.0, 1.0):
        model.after_evaluation(loss)
        model.before_update(2, 100)
        depths.append(model.depth)
    # 2.45 gains 0.05: a second pass. 2.6 is only that depth's mark; 2.19 gains 0.01: a third, and there are no more.
    assert depths == [1, 1, 2, 2, 2, 3, 3, 3]


def test_a_loss_that_is_not_a_number_adds_no_pass() -> None:
    model = tiny(growth="loss")
    model.before_update(1, 100)
    for loss in (3.0, float("nan")):
        model.after_evaluation(loss)
    assert model.depth == 1 and model.best_loss.item() == 3.0


def test_fixed_depth_ignores_what_it_is_told() -> None:
    model = tiny()
    model.before_update(1, 10)
    model.after_evaluation(1.0)
    assert model.depth == model.drawn == 3
    assert not [name for name in model.state_dict() if name in ("passes_now", "best_loss")]


@pytest.mark.parametrize("growth", ["steps", "loss"])
def test_the_depth_reached_survives_files_and_copies(growth: str, tmp_path: Path) -> None:
    model = tiny(growth=growth).float()
    model.before_update(1, 100)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Recursive) and loaded.depth == 1
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    inside = TrainingLoss(tiny(growth=growth).float())
    inside.load_state_dict({f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    assert isinstance(inside.model, Recursive) and inside.model.depth == 1
    assert copy.deepcopy(model).depth == 1


def test_a_buffer_filled_by_other_means_is_read_when_the_mode_is_set() -> None:
    model = tiny(growth="steps")
    model.passes_now.fill_(2)
    assert model.eval().depth == 2
    model.passes_now.fill_(9)
    with pytest.raises(InputError, match="passes_now"):
        model.eval()


def test_truncation_stops_gradients_in_early_passes_but_not_before_the_loop() -> None:
    model = tiny(backprop_passes=1, n_passes=3, **LOOP).train()
    states: dict[str, Tensor] = {}

    def keep(tensor: Tensor, name: str) -> None:
        tensor.retain_grad()
        states[name] = tensor

    model(ids(), Recording(others={"steps.*.attn.out": keep})).logits.square().mean().backward()
    reached = [states[f"steps.{i}.attn.out"].grad is not None for i in range(5)]
    assert reached == [True, False, False, True, True]
    assert all(p.grad is not None and p.grad.any() for p in model.blocks[0].parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.blocks[1].parameters())


def test_truncation_changes_gradients_and_no_output() -> None:
    whole, cut = tiny(**LOOP).train(), tiny(backprop_passes=2, **LOOP).train()
    gradients = []
    for model in (whole, cut):
        model(ids()).logits.square().mean().backward()
        gradients.append(model.blocks[1].attn.q.weight.grad)
    assert torch.equal(whole(ids()).logits, cut(ids()).logits)
    assert not torch.allclose(*gradients)


def test_random_counts_are_a_function_of_the_step_alone() -> None:
    counts = [draw_passes(step, 4, 8) for step in range(1, 2001)]
    assert counts == [draw_passes(step, 4, 8) for step in range(1, 2001)]
    assert counts[:12] == [3, 8, 5, 6, 2, 4, 2, 1, 2, 3, 2, 2]
    assert 3.7 < sum(counts) / 2000 < 4.1 and set(counts) == set(range(1, 9))


@pytest.mark.parametrize(("mean", "longest"), [(1, 1), (1, 2), (3, 6), (16, 32), (32, 64), (500, 1000)])
def test_random_counts_take_few_values_within_bounds_and_keep_their_mean(mean: int, longest: int) -> None:
    counts = [draw_passes(step, mean, longest) for step in range(1, 1001)]
    assert len(set(counts)) <= DISTINCT_COUNTS and min(counts) >= 1 and max(counts) <= longest
    assert abs(sum(counts) / 1000 - mean) < 0.1 * mean + 0.1


def test_random_depth_is_of_training_only_and_unseen_by_taps_beyond_the_schedule() -> None:
    model = tiny(pass_count="random", max_passes=6)
    seen = []
    for step in range(1, 30):
        model.before_update(step, 30)
        seen.append(model.train()(ids(1, 4)).statistics["passes"].item())
        assert model.eval()(ids(1, 4)).statistics["passes"] == 3
        model.train()
        assert steps_that_ran(model, ids(1, 4)) == [*range(1 + min(3, model.drawn)), 4]
    assert seen == [draw_passes(step, 3, 6) for step in range(1, 30)]
    assert max(seen) > 3


def test_compilation_makes_one_graph_a_count_and_never_gives_up() -> None:
    torch._dynamo.reset()
    model, graphs = tiny(pass_count="random", sharing="cycle", n_passes=4, n_slots=4, max_passes=8).train(), []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.trunk, backend=count, dynamic=False)
    with torch.no_grad():
        for passes in [*range(1, 1 + DISTINCT_COUNTS)] * 2:
            model.drawn = passes
            torch.testing.assert_close(compiled(ids(1, 4)).x_BTD, model.trunk(ids(1, 4)).x_BTD)
    assert len(graphs) == DISTINCT_COUNTS


def test_noise_is_drawn_in_training_only() -> None:
    model = tiny(injection="concat", start="noise")
    assert torch.equal(model(ids()).logits, model(ids()).logits)
    assert not torch.equal(model.train()(ids()).logits, model(ids()).logits)
    zeros = tiny(injection="concat", start="zeros")
    zeros.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(ids()).logits, zeros(ids()).logits)


def test_injection_enters_each_pass() -> None:
    for injection in ("add", "concat", "decay"):
        model, seen = tiny(injection=injection), Recording("steps.*.resid_pre", "steps.*.resid_post")
        plain = model(ids(), seen).logits
        silent = Recording(others={"control.injection": lambda tensor, name: torch.zeros_like(tensor)})
        assert not torch.allclose(model(ids(), silent).logits, plain)
        for i in (2, 3):
            assert not torch.equal(seen[f"steps.{i}.resid_pre"], seen[f"steps.{i - 1}.resid_post"])
        assert torch.equal(seen["steps.4.resid_pre"], seen["steps.3.resid_post"])


def test_a_decaying_state_without_updates_approaches_what_is_injected() -> None:
    model = tiny(injection="decay", start="zeros", pass_signal="gain", n_passes=3).with_passes(40)
    with torch.no_grad():
        for signal in model.signals:
            signal.zero_()
    seen = Recording("steps.*.resid_post")
    assert model(ids(), seen).statistics["last_change"] < 1e-12
    torch.testing.assert_close(seen["steps.40.resid_post"], seen["steps.0.resid_post"])


@pytest.mark.parametrize("sharing", ["cycle", "sequence", "middle_cycle", "middle_sequence"])
@pytest.mark.parametrize("kv_sharing", ["none", "first"])
def test_depth_can_be_changed_for_evaluation(sharing: str, kv_sharing: str) -> None:
    n_slots = 8 if "middle" in sharing else 6
    config = {"sharing": sharing, "kv_sharing": kv_sharing, "injection": "add", "pass_signal": "embedding"}
    model = tiny(n_slots=n_slots, **config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("signals")}
    for n_passes in (1, 2, 5):
        deeper = tiny(n_slots=n_slots + 2 * (n_passes - 3), n_passes=n_passes, **config)
        deeper.load_state_dict(state, strict=False)
        view = model.with_passes(n_passes)
        assert torch.equal(view(ids()).logits, deeper(ids()).logits)
        assert show(view.schedule) == show(deeper.schedule)
        assert view.budget(16).flops_per_token == deeper.budget(16).flops_per_token
        cache = view.new_cache(2, 16)
        view(ids()[:, :9], cache=cache)
        cache.advance(9)
        rest = view(ids()[:, 9:], cache=cache).logits
        torch.testing.assert_close(rest, view(ids()).logits[:, 9:], rtol=1e-9, atol=1e-9)
    assert model.depth == 3 and len(model.schedule) == n_slots
    with pytest.raises(InputError, match="n_passes"):
        model.with_passes(0)


def test_shared_keys_save_cache_and_are_those_of_the_first_application() -> None:
    own, first = (
        tiny(n_slots=8, n_kv_heads=2, qk_norm=True),
        tiny(n_slots=8, n_kv_heads=2, qk_norm=True, kv_sharing="first"),
    )
    assert len(first.new_cache(1, 16).slots) == 4 and len(own.new_cache(1, 16).slots) == 8
    assert first.budget().cache_bytes_per_token * 2 == own.budget().cache_bytes_per_token
    seen = Recording("steps.*.attn.k", "steps.*.attn.pattern")
    first(ids(), seen)
    assert [name for name in seen if name.endswith("attn.k")] == [f"steps.{i}.attn.k" for i in (0, 1, 2, 7)]
    assert [name for name in seen if name.endswith("pattern")] == [f"steps.{i}.attn.pattern" for i in range(8)]
    assert not torch.equal(first(ids()).logits, own(ids()).logits)
    one_pass = {"n_slots": 4, "n_passes": 1}
    assert torch.equal(tiny(**one_pass)(ids()).logits, tiny(**one_pass, kv_sharing="first")(ids()).logits)


def test_shared_keys_carry_gradients_of_all_passes() -> None:
    model = tiny(kv_sharing="first", qk_norm=True).train()
    values: dict[str, Tensor] = {}

    def keep(tensor: Tensor, name: str) -> None:
        tensor.retain_grad()
        values[name] = tensor

    taps = Recording(others={"steps.1.attn.v": keep})
    model(ids(), taps).logits.square().mean().backward()
    whole = values["steps.1.attn.v"].grad
    cut = {f"steps.{i}.attn.z": lambda tensor, name: tensor.detach() for i in (2, 3)}
    model(ids(), Recording(others={"steps.1.attn.v": keep} | cut)).logits.square().mean().backward()
    assert whole is not None and not torch.allclose(whole, values["steps.1.attn.v"].grad)


@pytest.mark.parametrize("config", CONTRACT_CONFIGS)
def test_flops_are_counted_exactly(config: dict[str, Any]) -> None:
    model = build("recursive", **(TINY | {"d_model": 32} | config)).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(3, 16, dtype=torch.long, device="meta"))
    assert model.budget(16).flops_per_token * 3 * 16 == counter.get_total_flops()


def test_the_last_change_tells_how_far_the_state_still_moves() -> None:
    model, seen = tiny(), Recording("steps.*.resid_post")
    change = model(ids(), seen).statistics["last_change"]
    last, before = seen["steps.3.resid_post"], seen["steps.2.resid_post"]
    torch.testing.assert_close(change, ((last - before).norm(dim=-1) / last.norm(dim=-1)).mean())


def test_the_sandwich_keeps_the_stream_at_one_size_however_deep() -> None:
    model = tiny(sandwich_norm=True, injection="concat", start="zeros")
    for n_passes in (1, 30):
        seen = Recording("steps.*.resid_post")
        model.with_passes(n_passes)(ids(), seen)
        assert all(seen[name].square().mean().item() == pytest.approx(1, rel=1e-3) for name in seen)
