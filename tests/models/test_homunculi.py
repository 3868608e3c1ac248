"""The flagship: every sentence that describes it holds. Long, because they are all about one model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.experiments.certify import certify
from homunculi.models.homunculi import EFFECTS, KAPPA, REGIONS, SIGNALS, Config, Homunculi
from homunculi.models.mor import Config as MoRConfig
from homunculi.models.mor import MoR
from homunculi.train.config import RunConfig, TrainConfig
from homunculi.train.distributed import World
from homunculi.train.loss import TrainingLoss
from homunculi.train.step import Updater

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 16,
    "n_heads": 2,
    "max_seq_len": 24,
    "window": 4,
    "n_experts": 4,
    "plan_width": 8,
    "packet_width": 8,
}


def make(seed: int = 0, noise: float = 0.0, **fields: Any) -> Homunculi:
    torch.manual_seed(seed)
    model = Homunculi(Config(**(SIZES | fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model.eval()


def ids(n_rows: int = 2, n_tokens: int = 24, seed: int = 1) -> Tensor:
    return torch.randint(31, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def record(model: Homunculi, tokens: Tensor, **hooks: Any) -> Recording:
    seen = Recording("*", others=hooks.get("others"))
    with torch.no_grad():
        model(tokens, seen)
    return seen


@pytest.mark.parametrize("kv", ["per_pass", "shared"])
def test_without_regions_and_packet_it_is_the_mixture_of_recursions(kv: Any) -> None:
    bare = make(regions=(), signals=(), n_shared=2, burst=3, kv=kv, noise=0.1)
    sizes: dict[str, Any] = {"vocab_size": 31, "d_model": 16, "n_heads": 2, "max_seq_len": 24, "n_slots": 8}
    plain = MoR(MoRConfig(**sizes, n_passes=3, burst=3, qk_norm=True, kv=kv)).eval()
    names = {"first.": "blocks.0.", "last.": "blocks.3."}
    for k in range(2):
        names |= {
            f"temporal.{k}.norm.": f"blocks.{1 + k}.attn_norm.",
            f"temporal.{k}.attn.": f"blocks.{1 + k}.attn.",
            f"neocortex.{k}.norm.": f"blocks.{1 + k}.mlp_norm.",
            f"neocortex.{k}.plain.": f"blocks.{1 + k}.mlp.",
        }
    state = {}
    for name, tensor in bare.state_dict().items():
        prefix = next((p for p in names if name.startswith(p)), "")
        state[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    state.pop("dopamine_G")
    plain.load_state_dict(state)
    assert torch.equal(bare(ids()).logits, plain(ids()).logits)


def test_a_packet_at_its_start_changes_no_bit_and_still_learns() -> None:
    model = make()
    assert torch.equal(model(ids()).logits, model.neutral_twin().eval()(ids()).logits)
    config = RunConfig(model=model.config, steps=4, lr=1e-2, compile="off", train=TrainConfig())
    updater = Updater(model, config, None, World(), torch.device("cpu"), pytest.fail)
    before = {name: p.detach().clone() for name, p in model.packet.named_parameters()}  # type: ignore[union-attr]
    for step in (1, 2, 3):
        updater.update(step, [ids(4, 24, seed=step)], stop=False)
    still = [name for name, p in model.packet.named_parameters() if torch.equal(p, before[name])]  # type: ignore[union-attr]
    assert not still


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_influences_within_its_bound_and_can_be_clamped(signal: str) -> None:
    model = make(noise=0.2)
    effect = next(effect for effect, source in EFFECTS.items() if source == signal)
    for level in (0.0, 1.0, 2.0, 1e6):
        factor = model.packet.influence(effect, {signal: torch.tensor([level])})  # type: ignore[union-attr]
        assert factor is not None and abs(factor.item() - 1) <= KAPPA + 1e-6
    free = model(ids()).logits
    outcomes = []
    for level in (0.0, 1.0, 2.0):
        hook = {f"steps.*.packet.{signal}": lambda t, name, level=level: torch.full_like(t, level)}
        outcomes.append(model(ids(), Recording(others=hook)).logits)
    assert not torch.allclose(outcomes[0], outcomes[2]) and not torch.allclose(outcomes[1], free)


def test_the_prefrontal_state_crosses_passes_and_tokens() -> None:
    model = make(noise=0.3, capacities=(1.0, 1.0, 1.0))
    base = record(model, ids())

    def write(tensor: Tensor, name: str) -> Tensor:
        changed = tensor.clone()
        changed[:, 3] += 1
        return changed

    after = record(model, ids(), others={"steps.1.prefrontal.state": write})
    moved = (after["steps.2.prefrontal.state"] - base["steps.2.prefrontal.state"]).abs().amax((0, 2))
    assert moved[3] > 1e-4, "the same token's next pass hears nothing"
    assert moved[4] > 1e-6, "the next token's next pass hears nothing"
    assert moved[:3].max() == 0


def test_a_forecast_that_nobody_teaches_moves_nothing() -> None:
    for forecast, moves in (("surprise", True), ("none", False)):
        model = make(noise=0.2, forecast=forecast)
        before = model(ids()).logits
        with torch.no_grad():
            model.amygdala.forecast.weight.add_(1.0)  # type: ignore[union-attr]
        assert torch.equal(before, model(ids()).logits) is not moves


def test_inhibition_closes_an_expert_and_a_memory_head() -> None:
    model = make(noise=0.2, capacities=(1.0, 1.0, 1.0), n_active=2)

    def close_first(tensor: Tensor, name: str) -> Tensor:
        closed = tensor.clone()
        closed[..., 0] = 0
        return closed

    seen = record(model, ids(), others={"steps.*.prefrontal.open_experts": close_first})
    chosen = torch.cat([seen[f"steps.{i}.experts.logits"].topk(2, -1).indices.flatten() for i in (1, 2, 3)])
    assert 0 not in chosen
    free = record(model, ids())
    assert any(0 in free[f"steps.{i}.experts.logits"].topk(2, -1).indices for i in (1, 2, 3))
    silenced = record(model, ids(), others={"steps.1.prefrontal.open_heads": close_first})
    assert silenced["steps.2.memory.z"][..., 0, :].abs().max() == 0
    assert silenced["steps.2.memory.z"][..., 1, :].abs().max() > 0


def test_routing_of_depth_experts_and_memory_follows_salience() -> None:
    model = make(noise=0.2)
    quiet, loud = (
        record(model, ids(), others={"*amygdala.salience": lambda t, name, level=level: torch.full_like(t, level)})
        for level in (0.0, 1.0)
    )
    assert (loud["steps.2.router.score"] > quiet["steps.2.router.score"]).all()
    assert not torch.equal(loud["steps.1.experts.logits"], quiet["steps.1.experts.logits"])
    assert (loud["steps.1.memory.write"] >= quiet["steps.1.memory.write"]).all()
    assert quiet["steps.1.memory.write"].max() == 0


def test_the_wish_to_halt_moves_the_next_passes_router() -> None:
    model = make(noise=0.2)
    halted = record(model, ids(), others={"steps.1.prefrontal.halt": lambda t, name: torch.full_like(t, 9.0)})
    assert (halted["steps.2.router.score"] < record(model, ids())["steps.2.router.score"]).all()
    assert not halted["steps.2.router.taking"].any()


def test_a_token_beyond_the_window_is_remembered_by_the_memory_alone() -> None:
    """One pass with a window of one token, first and last block cut off from the past: only the memory reaches back."""
    far = {"n_passes": 1, "window": 1}
    model = make(noise=0.2, **far, signals=(), regions=("temporal",))
    for block in (model.first, model.last):
        torch.nn.init.zeros_(block.attn.o.weight)
    changed = ids().clone()
    changed[:, 0] = (changed[:, 0] + 1) % 31
    assert not torch.allclose(model(changed).logits[:, 8:], model(ids()).logits[:, 8:], atol=1e-6)
    for temporal in model.temporal:
        torch.nn.init.zeros_(temporal.memory.o.weight)
    assert torch.equal(model(changed).logits[:, 8:], model(ids()).logits[:, 8:])


def test_with_shared_keys_a_later_pass_sees_also_those_that_do_not_take_it() -> None:
    tokens, near = ids(), torch.ones(24, 24).tril().triu(-3).bool()
    for kv, sees_all in (("shared", True), ("per_pass", False)):
        model = make(noise=0.2, kv=kv, burst=0)
        seen = record(model, tokens)
        for i in (2, 3):
            taking_BT = seen[f"steps.{i}.router.taking"]
            assert taking_BT.any() and not taking_BT.all()
            looked_BTS = (seen[f"steps.{i}.attn.pattern"] > 0).all(1)
            if sees_all:
                assert torch.equal(looked_BTS, near & taking_BT[..., None])
            else:
                assert not (looked_BTS & ~taking_BT[:, None]).any()


def test_shared_keys_cost_less_cache_and_no_keys_in_later_passes() -> None:
    shared, own = make(kv="shared"), make(kv="per_pass")
    assert shared.new_cache(1, 24).n_bytes < own.new_cache(1, 24).n_bytes
    assert shared.budget().cache_bytes_per_token < own.budget().cache_bytes_per_token
    assert shared.budget().executed_parameters < own.budget().executed_parameters
    names = set(record(shared, ids()))
    assert "steps.1.attn.k" in names and not {"steps.2.attn.k", "steps.3.attn.v"} & names


def test_a_tokens_dopamine_scales_what_the_block_learns_from_it_and_nothing_else() -> None:
    levels_T = torch.linspace(0.2, 1.9, 24)
    raw_T = levels_T.clamp(min=0.5)
    apart_T = raw_T / raw_T.mean() - 1
    wanted_T = 1 + apart_T / max(1.0, (apart_T.max() / 1).item(), (-apart_T.min() / 0.5).item())
    assert wanted_T.mean().item() == pytest.approx(1) and wanted_T.min() >= 0.5 and wanted_T.max() <= 2
    found = []
    for fields in ({}, {"token_plasticity": True}):
        model = make(noise=0.2, n_passes=1, **fields).train()
        kept: dict[str, Tensor] = {}
        hooks = {
            "steps.1.packet.dopamine": lambda t, name: levels_T.expand(t.shape[:2])[..., None].to(t),
            "steps.1.resid_post": lambda t, name, kept=kept: kept.update(y=t),
            "steps.1.resid_pre": lambda t, name, kept=kept: kept.update(x=t),
        }
        hidden = model.trunk(ids(), Recording(others=hooks))
        loss = hidden.x_BTD.square().sum()
        found.append((hidden.x_BTD, *torch.autograd.grad(loss, (kept["y"], kept["x"]))))
    (out, y_grad, x_grad), (paced_out, paced_y_grad, paced_x_grad) = found
    assert torch.equal(out, paced_out)
    torch.testing.assert_close(paced_y_grad, wanted_T[:, None] * y_grad, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(paced_x_grad, x_grad)


def test_even_dopamine_teaches_as_without_and_evaluation_is_not_scaled() -> None:
    even = {"*packet.dopamine": lambda t, name: torch.full_like(t, 1.7)}
    for level, training in ((even, True), ({}, False)):
        gradients = []
        for fields in ({}, {"token_plasticity": True}):
            model = make(noise=0.2, **fields).double().train(training)
            model.trunk(ids(), Recording(others=level)).x_BTD.square().mean().backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_a_pass_that_nobody_takes_teaches_nothing_and_breaks_nothing() -> None:
    model = make(noise=0.2, token_plasticity=True).train()
    with torch.no_grad():
        model.router.threshold_R.fill_(1e9)
    losses = TrainingLoss(model)(ids(2, 25))
    losses.cross_entropy.backward()
    assert losses.cross_entropy.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


BOTH = ("memory", "experts")


@pytest.mark.parametrize(("tap", "levels"), [("*amygdala.salience", (0.0, 1.0)), ("*prefrontal.state", (-1.0, 1.0))])
def test_which_way_a_token_goes_follows_salience_and_plan(tap: str, levels: tuple[float, float]) -> None:
    model = make(paths=BOTH, noise=0.2, capacities=(1.0, 1.0, 1.0))
    low, high = (
        record(model, ids(), others={tap: lambda t, name, level=level: torch.full_like(t, level)}) for level in levels
    )
    for path in BOTH:
        for r in (1, 2, 3) if path == "experts" or "salience" in tap else (2, 3):  # no plan before the first pass
            site = f"steps.{r}.paths.{path}"
            assert not torch.allclose(low[f"{site}.score"], high[f"{site}.score"], atol=1e-3), site
            assert not torch.equal(low[f"{site}.taking"], high[f"{site}.taking"]), site
    if "salience" in tap:
        assert (high["steps.1.paths.memory.score"] > low["steps.1.paths.memory.score"]).all()


def test_who_goes_past_memory_or_experts_is_not_computed_there() -> None:
    model = make(paths=BOTH, noise=0.2, path_share=0.4, burst=0)
    seen = record(model, ids())
    for r in (1, 2, 3):
        for path, shown in (("memory", ("memory.out", "memory.write")), ("experts", ("experts.out", "experts.logits"))):
            through_BT = seen[f"steps.{r}.paths.{path}.taking"]
            assert 0 < through_BT.float().mean() < 0.5
            assert all(not seen[f"steps.{r}.{name}"][~through_BT].any() for name in shown)
            assert all(seen[f"steps.{r}.{name}"][through_BT].any(-1).all() for name in shown)
    plain = make(noise=0.2, burst=0)
    assert model.budget().flops_per_token < 0.9 * plain.budget().flops_per_token


def test_who_goes_past_the_memory_leaves_no_trace_in_it() -> None:
    """One pass, no window, first and last block without attention: the past is heard through the memory alone."""
    model = make(paths=("memory",), n_passes=1, window=1, signals=(), regions=("temporal",), noise=0.2)
    for block in (model.first, model.last):
        torch.nn.init.zeros_(block.attn.o.weight)

    def only(place: int | None) -> Any:
        def write(taking: Tensor, name: str) -> Tensor:
            chosen = torch.zeros_like(taking)
            chosen[:, [20] if place is None else [place, 20]] = True
            return chosen

        return {"steps.1.paths.memory.taking": write}

    changed = ids().clone()
    changed[:, 3] = (changed[:, 3] + 1) % 31
    for place, heard in ((3, True), (None, False)):
        before, after = (model(t, Recording(others=only(place))).logits[:, 4:] for t in (ids(), changed))
        moved_T = (before - after).abs().amax((0, 2)) > 1e-7
        assert moved_T[20 - 4].item() is heard
        assert moved_T.sum() == int(heard), "tokens that go past the memory read from it"


def test_paths_hold_their_shares_and_learn() -> None:
    model = make(paths=BOTH, path_share=0.3)
    config = RunConfig(model=model.config, steps=60, lr=1e-3, compile="off", train=TrainConfig())
    updater = Updater(model, config, None, World(), torch.device("cpu"), pytest.fail)
    before = {name: p.detach().clone() for name, p in model.paths.named_parameters()}
    batch = ids(8, 25)
    for step in range(1, 41):
        updater.update(step, [batch], stop=False)
    found = TrainingLoss(model.train())(batch).statistics
    assert all(0.2 < found[f"wanting_{path}"] < 0.4 for path in BOTH)
    assert not [name for name, p in model.paths.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize(
    "fields",
    [
        {"router": "token_choice", "kv": "shared"},
        {"paths": ("memory",), "regions": ("temporal",), "path_share": 0.2},
    ],
    ids=str,
)
def test_paths_are_causal_and_decode_exactly(fields: dict[str, Any]) -> None:
    model = make(**({"paths": BOTH, "path_share": 0.5, "burst": 1, "n_passes": 2} | fields))
    found = certify(model, 31, 24, trial_seconds=0)
    assert found.causal and found.causal_in_training and not found.failed


def test_listeners_inside_a_path_are_told_who_goes_through() -> None:
    class Told(Recording):
        said: ClassVar[list[Tensor]] = []

        def at(self, step: int) -> Told:
            return Told(f"steps.{step}.memory.out")

        def wants(self, site: str) -> bool:
            return site in ("memory.out", "paths.memory.taking")

        def among(self, present_BT: Tensor) -> Told:
            self.said.append(present_BT)
            return self

    model = make(paths=("memory",), path_share=0.4, noise=0.2)
    seen = record(model, ids())
    model(ids(), Told())
    for r in (1, 2, 3):
        assert any(torch.equal(said, seen[f"steps.{r}.paths.memory.taking"]) for said in Told.said), r


def test_nobody_going_through_is_skipped_while_decoding() -> None:
    model = make(paths=BOTH, noise=0.1)
    with torch.no_grad():
        for path in BOTH:
            model.paths[path].threshold_R.fill_(1e9)  # type: ignore[operator, union-attr]
    seen = Recording("*")
    model(ids(2, 1), seen, cache=model.new_cache(2, 24))
    assert "steps.1.attn.out" in seen.seen and not {"steps.1.memory.out", "steps.1.experts.out"} & set(seen)


@pytest.mark.parametrize(
    ("fields", "separator"),
    [({"kv": "shared", "token_plasticity": True}, None), ({"paths": BOTH}, None), ({"kv": "shared", "paths": BOTH}, 3)],
    ids=str,
)
def test_options_compile_in_one_graph(fields: dict[str, Any], separator: int | None) -> None:
    """Traced whole, forward and loss: a value that the host would have to see would break the graph."""
    torch._dynamo.reset()
    loss_of = TrainingLoss(make(**fields, n_passes=2).train(), separator=separator)
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True, dynamic=False)
    tokens = ids(2, 25)
    assert compiled(tokens).cross_entropy.item() == pytest.approx(loss_of(tokens).cross_entropy.item(), rel=1e-5)


@pytest.mark.parametrize("target", ["surprise", "reducible"])
def test_the_amygdala_learns_its_forecast_and_nothing_else_does(target: str) -> None:
    model = make(forecast=target).train()
    losses = TrainingLoss(model)(ids(4, 24))
    losses.terms["forecast"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"amygdala.forecast.weight", "amygdala.bias"}


def test_statistics_move_thresholds_biases_and_the_running_dopamine() -> None:
    model = make(noise=0.2).train()
    found = TrainingLoss(model)(ids(4, 24)).statistics
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model.after_update(found)
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    expected = {"dopamine_G", "amygdala.typical", "amygdala.turn", "router.threshold_R", "router.mean_R"}
    expected.add("neocortex.0.experts.bias_E")
    assert moved == expected


def test_dopamine_makes_regions_learn_at_their_own_pace() -> None:
    model = make()
    with torch.no_grad():
        model.dopamine_G.copy_(torch.tensor([1.4, 1.0, 0.6]))
    paces = model.plasticity()
    assert list(paces) == ["temporal", "prefrontal", "neocortex"]
    assert paces["temporal"] > paces["prefrontal"] > paces["neocortex"]
    assert not make(signals=()).plasticity()


@pytest.mark.parametrize("region", [*REGIONS, "packet"])
def test_each_part_can_be_left_out_or_filled_up_with_plain_parameters(region: str) -> None:
    whole = make(d_model=32)
    rest = tuple(name for name in REGIONS if name != region)
    without: dict[str, Any] = {"signals": ()} if region == "packet" else {"regions": rest}
    out, filled = make(d_model=32, **without), make(d_model=32, **without, filled=(region,))
    n_whole, n_out, n_filled = (m.budget().parameters for m in (whole, out, filled))
    assert n_out < n_whole
    assert n_filled == pytest.approx(n_whole, rel=0.01)
    assert all(m(ids()).logits.isfinite().all() for m in (out, filled))


@pytest.mark.parametrize("kv", ["per_pass", "shared"])
@pytest.mark.parametrize("router", ["token_choice", "expert_choice"])
def test_the_other_routers_decode_exactly_too(router: str, kv: str) -> None:
    model = make(router=router, kv=kv, noise=0.1).double()
    whole = model(ids()).logits
    cache, pieces = model.new_cache(2, 24), []
    for piece in ids().split([1, 9, 1, 13], dim=1):
        pieces.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-9)


def test_rows_that_nobody_takes_further_are_skipped_while_decoding() -> None:
    model = make(noise=0.1)
    with torch.no_grad():
        model.router.threshold_R.fill_(1e9)
    seen = Recording("steps.*.resid_post")
    model(ids(2, 1), seen, cache=model.new_cache(2, 24))
    assert "steps.1.resid_post" in seen.seen and "steps.2.resid_post" not in seen.seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regions": ("temporal", "cerebellum")}, "model.regions: cerebellum"),
        ({"signals": ("dopamine", "dopamine")}, "model.signals"),
        ({"filled": ("temporal",)}, "model.filled: temporal takes part itself"),
        ({"filled": ("packet",)}, "model.filled: packet takes part itself"),
        ({"capacities": (1.0, 0.5)}, "model.capacities"),
        ({"capacities": (1.0, 0.3, 0.6)}, "model.capacities"),
        ({"capacities": (0.5, 0.5, 0.5)}, "the first pass takes every token"),
        ({"n_active": 9}, "model.n_active"),
        ({"n_heads": 3}, "model.n_heads"),
        ({"n_passes": 0}, "model.n_passes"),
        ({"window": -1}, "model.window"),
        ({"router": "oracle"}, "model.router"),
        ({"kv": "first"}, "model.kv"),
        ({"paths": ("attention",)}, "model.paths: attention"),
        ({"paths": ("memory", "memory")}, "model.paths"),
        ({"paths": ("experts",), "regions": ("temporal",)}, "model.paths: experts belongs to neocortex"),
        ({"paths": ("memory",), "path_share": 1.0}, "model.path_share"),
        ({"path_share": 0.0}, "model.path_share"),
    ],
)
def test_impossible_settings_are_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Config(**SIZES), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kv": "shared", "n_shared": 2, "paths": BOTH},
        {"paths": ("memory",), "window": 0, "router": "token_choice"},
        {"regions": ("amygdala", "prefrontal"), "kv": "shared"},
        {"capacities": (1.0, 1.0, 1.0), "kv": "shared", "signals": ()},
    ],
    ids=str,
)
def test_documents_packed_in_a_row_give_what_they_give_apart(fields: dict[str, Any]) -> None:
    """Room for everybody: quotas count the tokens of a row, whatever their documents."""
    model = make(**({"noise": 0.2, "max_seq_len": 150, "burst": 150} | fields)).double()
    row, sizes = ids(2, 150), (70, 1, 9, 64, 6)
    documents_BT = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes)).expand(2, -1)
    packed = model(row, documents_BT=documents_BT).logits
    apart = torch.cat([model(piece).logits for piece in row.split(sizes, 1)], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-4)  # rotations are tables in float32
    other = row.clone()
    other[:, 70:80] = (other[:, 70:80] + 1) % 31
    moved_T = (model(other, documents_BT=documents_BT).logits - packed).abs().amax((0, 2))
    assert moved_T[70:80].max() > 1e-3 and moved_T[:70].max() < 1e-12 and moved_T[80:].max() < 1e-12
    assert not torch.allclose(packed, model(row).logits, atol=1e-3)
    if min(model.config.shares) < 1:
        seen = record(model, row)
        assert 0 < seen["steps.2.router.taking" if "n_shared" not in fields else "steps.3.router.taking"].sum() < 300


def test_a_model_learns_from_documents_that_are_kept_apart() -> None:
    model, tokens = make(noise=0.1, forecast="reducible").train(), ids(4, 25)
    tokens[:, 7::9] = 0
    loss_of = TrainingLoss(model, separator=0)
    losses = loss_of(tokens)
    torch.stack([losses.cross_entropy, *losses.terms.values()]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert losses.cross_entropy != TrainingLoss(model)(tokens).cross_entropy
