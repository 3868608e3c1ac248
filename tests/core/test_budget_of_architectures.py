"""Every registered architecture tells what is counted: parameters, products and cache, in evaluation and training."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from homunculi import models
from homunculi.core.held import holding
from homunculi.core.model import LanguageModel
from homunculi.parts.causal_conv import CausalConv
from homunculi.parts.readable import ReadableModel
from homunculi.parts.routers import RoutingOptions
from homunculi.train.loss import TrainingLoss

SIZES = {"vocab_size": 61, "d_model": 32, "max_seq_len": 96, "n_heads": 4}
# Beside the variants that architectures declare: options that change what is computed.
LOOK_AHEAD = RoutingOptions(stand_in="auxiliary", capacity_warmup_frac=0.5)
CUT = {"injection": "concat", "start": "noise", "pass_count": "random", "backprop_passes": 2}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "gpt": [{"n_blocks": 2, "n_kv_heads": 2, "d_head": 6, "tied": False}],
    "homunculi": [
        {"router": "expert_choice", "window": 16},
        {"n_shared": 2, "router": "token_choice", "n_experts": 3, "n_active": 1},
        {"regions": ("temporal", "amygdala"), "filled": ("neocortex",), "capacities": (1.0, 1.0, 1.0)},
    ],
    "mor": [
        {"router": "expert_choice", "routing": LOOK_AHEAD},
        {"router": "expert_choice", "kv": "shared", "n_kv_heads": 2},
        {"n_slots": 6, "sharing": "cycle", "capacities": (0.5, 0.3, 0.1)},
    ],
    "ncn": [
        {"n_blocks": 2, "n_controls": 3},
        {"n_blocks": 2, "signals": ()},
        {
            "n_blocks": 3,
            "statistics": ("change",),
            "signals": ("film", "dropout"),
            "dropout": 0.1,
            "instruction_tokens": 3,
        },
    ],
    "recursive": [
        {"n_slots": 10, "n_passes": 4, **CUT},
        {"n_slots": 6, "sharing": "sequence", "injection": "concat", "start": "zeros"},
        {"sharing": "middle_sequence", "kv_sharing": "first"},
    ],
}


def planned() -> list[Any]:
    assert OPTIONS.keys() <= set(models.names())
    cases = []
    for name in models.names():
        found = models.get(name)
        known = {field.name for field in fields(found.config_type)}
        sizes = {field: size for field, size in SIZES.items() if field in known}
        for i, options in enumerate([*found.variants, *OPTIONS.get(name, [])]):
            cases.append(pytest.param(name, sizes | dict(options), id=f"{name}-{i}"))
    return cases


CASES = planned()
pytestmark = pytest.mark.parametrize(("name", "config"), CASES)


class ProductsWithWeights(TorchDispatchMode):
    """Counts multiply-adds of products of which one side is learned: parameters, or made of them and constants."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.learned = WeakTensorKeyDictionary(dict.fromkeys(model.buffers(), False))  # False: a constant
        self.learned.update(dict.fromkeys(model.parameters(), True))
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        if given and all(t in self.learned for t in given):
            is_learned = any(self.learned[t] for t in given)
            self.learned.update({t: is_learned for t in tree_leaves(out) if isinstance(t, Tensor)})
        elif func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            left = given[-2]
            self.n += out.numel() * left.shape[-1] if any(self.learned.get(t, False) for t in given[-2:]) else 0
        elif func.overloadpacket == torch.ops.aten.convolution:
            self.n += out.numel() * given[1][0].numel()
        return out


def build(name: str, config: dict[str, Any]) -> LanguageModel:
    torch.manual_seed(0)
    return models.build(name, **config)


def random_ids(n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(SIZES["vocab_size"], (n_rows, n_tokens), generator=torch.Generator().manual_seed(0))


def test_parameters_are_those_stored_and_token_tables_those_of_the_vocabulary(
    name: str, config: dict[str, Any]
) -> None:
    model = build(name, config)
    stored = dict(model.named_parameters())
    budget = model.budget()
    assert budget.parameters == sum(p.numel() for p in stored.values())
    if isinstance(model, ReadableModel):  # its maps have a row a word, and act on states all the same
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        assert budget.embedding_parameters == sum(table.numel() for table in tables)
        return
    assert budget.embedding_parameters == sum(p.numel() for p in stored.values() if SIZES["vocab_size"] in p.shape)
    assert 0 < budget.embedding_parameters < budget.parameters


@pytest.mark.parametrize("n_tokens", [96, 33, 5])
def test_flops_and_executed_parameters_of_a_sequence_are_those_counted(
    name: str, config: dict[str, Any], n_tokens: int
) -> None:
    model = build(name, config).eval()
    products = ProductsWithWeights(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), holding(model):
        with products:
            model(random_ids(1, n_tokens))  # makes what is made of weights alone, which costs no token anything
        products.n = 0
        with FlopCounterMode(display=False) as counter:
            model(random_ids(1, n_tokens))
        with products:
            model(random_ids(1, n_tokens))
    budget = model.budget(n_tokens)
    total = counter.get_total_flops() / n_tokens
    constant = model.controller.from_controls.weight.numel() if config.get("n_controls") else 0  # on no token
    assert budget.flops_per_token == pytest.approx(total - 2 * constant / n_tokens, rel=1e-4)
    of_rows = 0
    if name == "ncn_published":  # its pool acts once a row; the query of the pool is a weight
        of_rows = SIZES["d_model"] * (SIZES["d_model"] + n_tokens)
    assert budget.executed_parameters == pytest.approx((products.n - of_rows) / n_tokens, rel=1e-4)


def test_training_costs_what_is_counted_forward_and_backward(name: str, config: dict[str, Any]) -> None:
    model, n_tokens = build(name, config).train(), 64
    n_rows = 64 if isinstance(model, ReadableModel) else 2  # so that products of weights alone weigh little
    loss_of = TrainingLoss(model)
    for step in (1, 20, 40):
        model.before_update(step, 40)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            losses = loss_of(random_ids(n_rows, n_tokens + 1))
            torch.stack([losses.cross_entropy, *losses.terms.values()]).sum().backward()
        counted = counter.get_total_flops() / (n_rows * n_tokens)
        told = model.budget(n_tokens).training_flops_per_token
        if isinstance(model, ReadableModel):  # the first of few steps reads the token itself, which takes no gradient
            has_convolution = any(isinstance(module, CausalConv) for module in model.modules())
            assert counted > 0.8 * told
            assert counted < 1.03 * told or has_convolution  # torch counts its gradient as if channels were mixed
        else:  # what learns beside the stream sends nothing back into it, and constants take no gradient
            assert told == pytest.approx(counted, rel=0.03)


def test_cache_bytes_are_those_by_which_the_cache_grows(name: str, config: dict[str, Any]) -> None:
    model = build(name, config)
    model.compute_dtype = torch.bfloat16
    grown = model.new_cache(3, 90).n_bytes - model.new_cache(3, 30).n_bytes
    assert model.budget().cache_bytes_per_token == pytest.approx(grown / (3 * 60), abs=0.5)


def test_a_model_that_stores_nothing_has_the_same_budget(name: str, config: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        empty = models.build(name, **config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_meta for p in empty.parameters())
    real = build(name, config)
    assert empty.budget() == real.budget()
    assert empty.eval().budget(40) == real.eval().budget(40)
