"""The mixture of recursions: who takes part, that the rest is not computed, what its routers learn and refuse.

Long, because three routers and two caches are all held against the same small models.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.taps import NO_TAPS, Recording, Taps
from homunculi.errors import InputError
from homunculi.evals.stand_in import stand_in_gap
from homunculi.experiments.certify import certify
from homunculi.experiments.subject import add_noise
from homunculi.models import build
from homunculi.models.mor import Config, MoR
from homunculi.parts.block import Block
from homunculi.parts.routers import RoutingOptions, Span
from homunculi.settings import override
from homunculi.train.loss import TrainingLoss

TINY: dict[str, Any] = {
    "vocab_size": 23,
    "d_model": 16,
    "n_heads": 2,
    "max_seq_len": 24,
    "n_slots": 8,
    "capacities": (1.0, 0.5, 0.25),
    "burst": 1,
}
ROUTERS = ("threshold", "token_choice", "expert_choice")


def tiny(**config: Any) -> MoR:
    torch.manual_seed(0)
    model = build("mor", **(TINY | config)).double().eval()
    add_noise(model, seed=1)
    assert isinstance(model, MoR)
    return model


def ids(n_rows: int = 3, n_tokens: int = 24) -> Tensor:
    return torch.randint(23, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


def taking(model: MoR, ids_BT: Tensor) -> list[Tensor]:
    """Who takes each routed pass."""
    seen = Recording("steps.*.router.taking")
    model(ids_BT, seen)
    return list(seen.seen.values())


# What the configuration refuses.


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"capacities": (1.0, 0.5)}, "model.capacities: 2 shares for 3 passes"),
        ({"capacities": (1.0, 0.5, 0.75)}, "model.capacities: 0.75 after 0.5"),
        ({"capacities": (1.0, 0.5, 0.0)}, "model.capacities"),
        ({"capacities": (1.5, 1.0, 0.5)}, "model.capacities"),
        ({"capacities": (0.5, 0.5, 0.5), "kv": "shared"}, "model.kv"),
        ({"router": "topk"}, "model.router"),
        ({"kv": "cyclic"}, "model.kv"),
        ({"sharing": "sequence"}, "model.sharing"),
        ({"n_slots": 7}, "model.n_slots"),
        ({"n_passes": 0}, "model.n_passes"),
        ({"burst": -1}, "model.burst"),
        ({"routing": RoutingOptions(capacity_warmup_frac=0.1)}, "capacity_warmup_frac"),
        ({"d_head": 5}, "model.d_head"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
        ({"vocab_size": 0}, "model.vocab_size"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        build("mor", **(TINY | config))
    assert field in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "routing.capacity_warmup_frac=2",
        "routing.balance=never",
        "routing.threshold_rate=-1",
        "router=top",
        "capacities=1",
    ],
)
def test_a_wrong_setting_on_the_command_line_is_named(assignment: str) -> None:
    with pytest.raises(InputError) as error:
        override(Config(**TINY), [assignment], "model")
    assert str(error.value).startswith(f"model.{assignment.split('=')[0]}") and "\n" not in str(error.value)


def test_capacities_left_out_fall_to_one_share_of_the_passes() -> None:
    assert Config(n_slots=8).shares == pytest.approx((1, 2 / 3, 1 / 3))


# What is computed, and for whom.


def slow_attention(block: Block, x_BTD: Tensor, rope: Any, seen_BTS: Tensor, source_BTD: Tensor) -> Tensor:
    """Attention of all tokens, by definition, to the keys and values of `source_BTD`."""
    attn, T = block.attn, x_BTD.shape[1]
    angle_TK = rope.cos_LK[:T], rope.sin_LK[:T]

    def heads(linear: Any, n: int, x: Tensor, turned: bool) -> Tensor:
        x_BHTK = linear(block.attn_norm(x)).unflatten(-1, (n, -1)).transpose(1, 2)
        half = x_BHTK.shape[-1] // 2
        other = torch.cat([x_BHTK[..., half:], x_BHTK[..., :half]], -1)
        return x_BHTK * angle_TK[0] + other * angle_TK[1] if turned else x_BHTK

    q, k = heads(attn.q, attn.n_heads, x_BTD, True), heads(attn.k, attn.n_kv_heads, source_BTD, True)
    v = heads(attn.v, attn.n_kv_heads, source_BTD, False)
    groups = attn.n_heads // attn.n_kv_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.mT / attn.d_head**0.5).masked_fill(~seen_BTS[:, None], -torch.inf)
    return attn.o((scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2).flatten(2))


def slow_block(block: Block, x_BTD: Tensor, rope: Any, seen_BTS: Tensor, source_BTD: Tensor) -> Tensor:
    x_BTD = x_BTD + slow_attention(block, x_BTD, rope, seen_BTS, source_BTD)
    return x_BTD + block.mlp(block.mlp_norm(x_BTD), NO_TAPS)


def slow_logits(model: MoR, ids_BT: Tensor) -> Tensor:
    """Every pass for all tokens, those who do not take part masked afterwards."""
    T, shares_kv = ids_BT.shape[1], model.config.kv == "shared"
    causal_BTS = torch.ones(1, T, T, dtype=torch.bool).tril().expand(len(ids_BT), -1, -1)
    span = Span(torch.arange(T)[None])
    x_BTD, last, first_inputs = model.embed(ids_BT), None, {}
    for i in model.first:
        x_BTD = slow_block(model.blocks[i], x_BTD, model.rope, causal_BTS, x_BTD)
    for r, steps in enumerate(model.passes):
        last = choice = model.router(r, x_BTD, last, span, NO_TAPS)
        all_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        taking_BT = all_BT if choice.taking_BT is None else choice.taking_BT
        seen_BTS = causal_BTS if shares_kv else causal_BTS & taking_BT[:, None]
        y_BTD = x_BTD
        for k, _ in enumerate(steps):
            first_inputs.setdefault(k, y_BTD)
            source_BTD = first_inputs[k] if shares_kv else y_BTD
            y_BTD = slow_block(model.blocks[k + len(model.first)], y_BTD, model.rope, seen_BTS, source_BTD)
        gate_BT = 1.0 if choice.gate_BT is None else choice.gate_BT[..., None]
        x_BTD = torch.where(taking_BT[..., None], x_BTD + gate_BT * (y_BTD - x_BTD), x_BTD)
    for _ in model.last:
        x_BTD = slow_block(model.blocks[-1], x_BTD, model.rope, causal_BTS, x_BTD)
    return F.linear(model.norm(x_BTD), model.embed.weight)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kv", ["per_pass", "shared"])
@pytest.mark.parametrize("router", ROUTERS)
def test_gathered_passes_give_the_numbers_of_computing_all_tokens(router: str, kv: str, training: bool) -> None:
    model = tiny(router=router, kv=kv, n_kv_heads=1).train(training)
    with torch.no_grad():
        shares = [mask.double().mean().item() for mask in taking(model, ids())]
        assert all(0 < share < 1 for share in shares)
        torch.testing.assert_close(model(ids()).logits, slow_logits(model, ids()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kv", ["per_pass", "shared"])
def test_later_dense_passes_and_a_routed_first_one_give_them_too(kv: str) -> None:
    for capacities in ((1.0, 1.0, 0.5), (0.75, 0.5, 0.5))[: 1 if kv == "shared" else 2]:
        for router in ROUTERS:
            model = tiny(router=router, kv=kv, capacities=capacities)
            torch.testing.assert_close(model(ids()).logits, slow_logits(model, ids()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sharing", ["cycle", "middle_cycle"])
@pytest.mark.parametrize("router", ROUTERS)
def test_with_all_capacities_one_it_is_the_recursive_transformer(router: str, sharing: str) -> None:
    n_slots = 8 if sharing == "middle_cycle" else 6
    own = tiny(router=router, sharing=sharing, n_slots=n_slots, capacities=(1.0, 1.0, 1.0))
    shape = {name: TINY[name] for name in ("vocab_size", "d_model", "n_heads", "max_seq_len")}
    twin = build("recursive", **shape, sharing=sharing, n_slots=n_slots).double().eval()
    twin.load_state_dict({name: t for name, t in own.state_dict().items() if not name.startswith("router.")})
    assert torch.equal(own(ids()).logits, twin(ids()).logits)
    assert own.budget() == twin.budget()


def test_documents_do_not_see_each_other_in_gathered_passes() -> None:
    ids_BT, documents_BT = ids(1), (torch.arange(24) >= 10).long()[None]
    other_BT = ids_BT.clone()
    other_BT[:, :10] = (other_BT[:, :10] + 1) % 23
    for kv in ("per_pass", "shared"):
        # Everybody wants to and everybody may, so that who takes part does not depend on the first document.
        model = tiny(kv=kv, capacities=(1.0, 0.99, 0.99), burst=24)
        model.router.threshold_R.fill_(-100.0)
        a, b = (model(x, documents_BT=documents_BT).logits for x in (ids_BT, other_BT))
        assert torch.allclose(a[:, 10:], b[:, 10:], rtol=1e-10) and not torch.allclose(a[:, :10], b[:, :10])


@pytest.mark.parametrize("kv", ["per_pass", "shared"])
def test_tokens_that_do_not_take_part_are_not_computed(kv: str) -> None:
    shape = {"capacities": (1.0, 0.5, 0.25), "burst": 0, "kv": kv}
    less, whole = tiny(**shape), tiny(kv=kv, capacities=(1.0, 1.0, 1.0))
    counted = []
    for model in (less, whole):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids())
        counted.append(counter.get_total_flops())
    # 2 steps of their own, 2 in each pass; in proportion to the tokens that take part but for attention and read-out.
    assert counted[0] / counted[1] == pytest.approx((2 + 2 * 1.75) / 8, abs=0.04)


# Who takes part.


@pytest.mark.parametrize("router", ROUTERS)
def test_a_pass_takes_only_who_took_the_one_before_and_no_more_than_its_quota(router: str) -> None:
    model = tiny(router=router)
    second_BT, third_BT = taking(model, ids(8))
    assert not (third_BT & ~second_BT).any() and third_BT.any()
    for mask_BT, r in ((second_BT, 1), (third_BT, 2)):
        counts_BT = mask_BT.long().cumsum(1)
        assert (counts_BT <= torch.tensor([model.router.quotas[r].of_first(n) for n in range(1, 25)])).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_who_takes_part_depends_on_no_later_token(router: str) -> None:
    model, changed_BT = tiny(router=router), ids()
    changed_BT[:, 12:] = (changed_BT[:, 12:] + 5) % 23
    for a_BT, b_BT in zip(taking(model, ids()), taking(model, changed_BT), strict=True):
        assert torch.equal(a_BT[:, :12], b_BT[:, :12]) and not torch.equal(a_BT[:, 12:], b_BT[:, 12:])


def test_training_takes_exactly_the_highest_scores_of_those_before() -> None:
    model, seen = tiny(router="expert_choice").train(), Recording("steps.*.router.*")
    model(ids(), seen)
    first = [f"steps.{steps[0]}.router." for steps in model.passes]
    second_BT, third_BT = seen[first[1] + "taking"], seen[first[2] + "taking"]
    assert second_BT.sum(1).tolist() == [12] * 3 and third_BT.sum(1).tolist() == [6] * 3
    assert not (third_BT & ~second_BT).any()
    score_BT = seen[first[2] + "score"].masked_fill(~second_BT, -torch.inf)
    assert (
        score_BT.masked_fill(~third_BT, torch.inf).amin(1) > score_BT.masked_fill(third_BT, -torch.inf).amax(1)
    ).all()


def test_a_refused_token_is_counted_and_stops() -> None:
    model = tiny(capacities=(1.0, 0.5, 0.5), burst=0)
    model.router.threshold_R.fill_(-100.0)
    statistics = model(ids()).statistics
    assert statistics["refused"] == pytest.approx(0.5) and statistics["wanting"].tolist() == [1.0, 1.0, 0.5]
    assert statistics["mean_depth"] == pytest.approx(2.0) and statistics["taking_pass_2"] == pytest.approx(0.5)


def test_a_clamped_depth_decides_how_many_passes_a_token_takes() -> None:
    model = tiny(router="token_choice", burst=24)
    for depth, shares in ((1, [0.0, 0.0]), (2, [1.0, 0.0]), (3, [1.0, 1.0])):
        seen = Recording("*.taking", others={"control.depth": lambda x, name, d=depth: torch.full_like(x, d)})
        model(ids(), seen)
        assert [mask.double().mean().item() for mask in seen.seen.values()] == shares


def test_whom_a_tap_adds_needs_a_place_too() -> None:
    model = tiny(capacities=(1.0, 0.5, 0.5), burst=0)
    everybody = Taps({"*.router.taking": lambda mask, name: torch.ones_like(mask)})
    assert model(ids(), everybody).statistics["taking_pass_2"] == pytest.approx(0.5)


# What the routers follow and learn.


def test_an_auxiliary_router_changes_training_in_nothing() -> None:
    losses = []
    for stand_in in ("score", "auxiliary"):
        model = tiny(router="expert_choice", routing=RoutingOptions(stand_in=stand_in))
        model.load_state_dict(tiny(router="expert_choice").state_dict(), strict=False)
        loss = TrainingLoss(model.train())(ids())
        losses.append(loss.cross_entropy)
        auxiliary = [p for name, p in model.named_parameters() if "stand_ins" in name]
        if auxiliary:
            assert all(
                g is None for g in torch.autograd.grad(losses[-1], auxiliary, allow_unused=True, retain_graph=True)
            )
            assert all(g.any() for g in torch.autograd.grad(loss.terms["stand_in"], auxiliary))
    assert torch.equal(*losses)


def test_the_warm_up_of_capacities_takes_few_sizes_and_ends_at_the_capacities() -> None:
    model = tiny(router="expert_choice", routing=RoutingOptions(capacity_warmup_frac=0.5)).train()
    sizes = []
    for step in range(1, 101):
        model.before_update(step, 100)
        sizes.append(model.router.places(1, 1000))
    assert sizes[0] == 1000 and sizes[50:] == [500] * 50 and sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) <= 7
    taken = []
    for step in (1, 30, 100):
        model.before_update(step, 100)
        taken.append([int(mask[0].sum()) for mask in taking(model, ids())])
    assert taken[0] == [24, 24] and taken[2] == [12, 6] and taken[2][0] < taken[1][0] < 24


# The router that looks ahead.


@pytest.mark.parametrize("stand_in", ["score", "auxiliary"])
def test_the_stand_in_is_causal_and_training_is_not(stand_in: str) -> None:
    torch.manual_seed(0)
    routing = RoutingOptions(stand_in=stand_in)  # type: ignore[arg-type]
    certificate = certify(build("mor", **(TINY | {"router": "expert_choice", "routing": routing})), 23, 24)
    assert certificate.causal and not certificate.causal_in_training
    assert all(check.name.endswith("_training") for check in certificate.failed)


def test_the_gap_of_the_stand_in_is_the_difference_of_two_losses() -> None:
    model, ids_BT = tiny(router="expert_choice", dropout=0.5).train(), ids()
    gap = stand_in_gap(model, ids_BT)
    assert model.training and model.router.training and gap == stand_in_gap(model, ids_BT) != 0
    model.eval()
    causal = F.cross_entropy(model(ids_BT[:, :-1]).logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    model.router.train()
    ahead = F.cross_entropy(model(ids_BT[:, :-1]).logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    assert gap == pytest.approx((ahead - causal).item(), abs=1e-6)
    assert stand_in_gap(tiny(router="threshold"), ids_BT) == 0


def contract() -> ModuleType:
    """The contract's checks, for a variant that the registry cannot declare: its training alone looks ahead."""
    path = Path(__file__).resolve().parents[1] / "contract" / "contract_checks.py"
    if "contract_checks" not in sys.modules:
        spec = importlib.util.spec_from_file_location("contract_checks", path)
        assert spec is not None and spec.loader is not None
        sys.modules["contract_checks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["contract_checks"])
    return sys.modules["contract_checks"]


EXPERT_CHOICE: dict[str, Any] = {
    "n_slots": 5,
    "router": "expert_choice",
    "capacities": (1.0, 0.5, 0.5),
    "burst": 2,
    "routing": RoutingOptions(capacity_warmup_frac=0.5),
}


@pytest.mark.parametrize(
    "check", ["shape", "overfitting", "state_dict", "taps", "budget", "exact_resume", "compilation"]
)
def test_expert_choice_passes_the_contract_but_for_causality_in_training(check: str, tmp_path: Path) -> None:
    checks = contract()
    config = Config(**(checks.SIZES | EXPERT_CHOICE))
    checks.CHECKS[check](checks.Case(f"mor-expert-choice-{check}", MoR, config), tmp_path)


# Decoding.


@pytest.mark.parametrize("kv", ["per_pass", "shared"])
@pytest.mark.parametrize("router", ROUTERS)
def test_decoding_equals_the_full_forward_token_by_token_and_for_ragged_prompts(router: str, kv: str) -> None:
    model, ids_BT = tiny(router=router, kv=kv, n_kv_heads=1), ids()
    with torch.no_grad():
        whole_BTV, lengths_B = model(ids_BT).logits, torch.tensor([7, 1, 4])
        cache = model.new_cache(3, 24)
        cache.announce(lengths_B)
        prompts_BT = torch.where(torch.arange(7) < lengths_B[:, None], ids_BT[:, :7], 0)
        read_BTV = model(prompts_BT, cache=cache).logits
        cache.advance(lengths_B)
        for row, n in enumerate(lengths_B.tolist()):
            torch.testing.assert_close(read_BTV[row, :n], whole_BTV[row, :n], rtol=1e-9, atol=1e-9)
        for size in (1, 1, 3, 1, 1, 1, 5, 1, 1, 1, 1):
            places_BT = cache.lengths_B[:, None] + torch.arange(size)
            logits_BTV = model(ids_BT.gather(1, places_BT), cache=cache).logits
            expected = whole_BTV.gather(1, places_BT[..., None].expand(-1, -1, 23))
            torch.testing.assert_close(logits_BTV, expected, rtol=1e-9, atol=1e-9)
            cache.advance(size)


def test_decoding_runs_blocks_on_the_rows_that_take_part_and_skips_them_if_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids_BT = tiny(), ids()
    masks = taking(model, ids_BT)
    batches: list[int] = []
    forward = Block.forward

    def counting(self: Block, x_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batches.append(len(x_BTD))
        return forward(self, x_BTD, *args, **kwargs)

    monkeypatch.setattr(Block, "forward", counting)
    cache, sizes = model.new_cache(3, 24), set()
    with torch.no_grad():
        for t in range(24):
            batches.clear()
            model(ids_BT[:, t : t + 1], cache=cache)
            cache.advance(1)
            rows = [int(mask[:, t].sum()) for mask in masks]
            assert batches == [3, 3, 3, *itertools.chain.from_iterable([n] * 2 for n in rows if n), 3]
            sizes |= set(rows)
    assert sizes >= {0, 1, 2}, "too few cases to show anything"


def test_a_cache_of_passes_is_as_long_as_their_quotas_and_shared_keys_are_kept_once() -> None:
    own, once = tiny(burst=2).new_cache(2, 20), tiny(kv="shared").new_cache(2, 20)
    assert [slot.k_BHLK.shape[2] for slot in own.slots[:8]] == [20, 20, 20, 13, 13, 8, 8, 20]
    assert [slot.k_BHLK.shape[2] for slot in once.slots[:4]] == [20] * 4 and len(once.slots) == 4 + 3
    assert tiny(kv="shared").budget().cache_bytes_per_token == tiny().budget().cache_bytes_per_token * 4 / 5.5
