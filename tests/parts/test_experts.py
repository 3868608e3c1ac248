"""Experts give what a loop over tokens gives, by every product; none is ever full; the bias only chooses.

Legend: B batch, C tokens, D width, E experts, A experts used by a token, M hidden width of an expert, P rows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.taps import NO_TAPS, Taps
from homunculi.parts import experts as module
from homunculi.parts.experts import Experts, Layout, grouped, in_blocks, lay_out, one_by_one
from homunculi.parts.mlp import ACTIVATIONS

D, M, E, B, C = 8, 16, 4, 3, 10


def experts(n_active: int = 2, activation: str = "swiglu") -> Experts:
    torch.manual_seed(0)
    return Experts(D, M, E, n_active, activation).double()


def inputs(skew: float = 0.0) -> tuple[Tensor, Tensor]:
    """Input and logits; a skew makes the first experts more wanted."""
    torch.manual_seed(1)
    x_BCD = torch.randn(B, C, D, dtype=torch.float64)
    return x_BCD, torch.randn(B, C, E, dtype=torch.float64) - skew * torch.arange(E)


def token_by_token(m: Experts, x_BCD: Tensor, logits_BCE: Tensor) -> Tensor:
    weights = {name: list(held) for name, held in m.maps.items()}
    out = []
    for x_D, logits_E in zip(x_BCD.flatten(0, 1), logits_BCE.flatten(0, 1), strict=True):
        chosen = (logits_E + m.bias_E).argsort(descending=True)[: m.n_active]
        if m.n_active == 1:
            shares = 2 / (1 + torch.exp(-logits_E[chosen]))
        else:
            shares = torch.exp(logits_E[chosen]) / torch.exp(logits_E[chosen]).sum()
        y_D = torch.zeros_like(x_D)
        for share, e in zip(shares, chosen, strict=True):
            h_M = x_D @ weights["in"][e]
            if m.activation == "swiglu":
                h_M = F.silu(x_D @ weights["gate"][e]) * h_M
            else:
                h_M = ACTIVATIONS[m.activation](h_M)
            y_D = y_D + share * (h_M @ weights["out"][e])
        out.append(y_D)
    return torch.stack(out).view_as(x_BCD)


@pytest.fixture(params=["one by one", "in blocks"])
def each_product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both products that take any type; blocks are those of a compiled forward."""
    if request.param == "in blocks":
        monkeypatch.setattr(Experts, "_block_size", lambda self, x_ND, n_pairs: 8)


@pytest.mark.usefixtures("each_product")
@pytest.mark.parametrize("n_active", [1, 2, E])
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu2"])
def test_output_and_gradients_equal_a_loop_over_tokens(n_active: int, activation: str) -> None:
    m = experts(n_active, activation)
    m.bias_E.copy_(torch.tensor([0.5, 0.0, -0.5, 0.0]))
    x, logits = (t.requires_grad_() for t in inputs())
    results = []
    for y in (m(x, logits, NO_TAPS)[0], token_by_token(m, x, logits)):
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, logits, *m.parameters()])])
    for got, want in zip(*results, strict=True):
        assert want.any() and torch.allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("each_product")
def test_no_expert_is_ever_full() -> None:
    m, (x, logits) = experts(), inputs(skew=50.0)
    y, choice = m(x, logits, NO_TAPS)
    assert torch.allclose(y, token_by_token(m, x, logits), rtol=1e-10, atol=1e-12)
    assert (choice.indices_BCA.sort(-1).values == torch.tensor([0, 1])).all()  # all want the same two, all get them
    assert torch.allclose(choice.weights_BCA.sum(-1), torch.ones(B, C, dtype=torch.float64))


@pytest.mark.usefixtures("each_product")
def test_rows_of_a_batch_are_independent() -> None:
    m, (x, logits) = experts(), inputs()
    together, _ = m(x, logits, NO_TAPS)
    alone = torch.cat([m(x[i : i + 1], logits[i : i + 1], NO_TAPS)[0] for i in range(B)])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("each_product")
def test_empty_places_get_nothing_and_teach_nothing() -> None:
    m, (x, logits) = experts(), inputs()
    taken = torch.zeros(B, C, dtype=torch.bool)
    taken[1, :4] = True
    y, choice = m(x, logits, NO_TAPS, taken)
    assert not y[~taken].any() and not choice.weights_BCA[~taken].any()
    want = m(x[1:2, :4], logits[1:2, :4], NO_TAPS)[0]
    assert torch.allclose(y[1:2, :4], want, rtol=1e-12, atol=1e-14)
    of_block = torch.autograd.grad(y.sin().sum(), list(m.parameters()))
    of_taken = torch.autograd.grad(want.sin().sum(), list(m.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(of_block, of_taken, strict=True))


@pytest.mark.parametrize("size", [1, 8, 16])
def test_every_pair_has_a_row_of_its_own_in_the_room_of_its_expert(size: int) -> None:
    torch.manual_seed(0)
    indices_NA = torch.rand(50, E).argsort(1)[:, :2] // 2 * 2  # experts 1 and 3 get nothing
    layout = lay_out(indices_NA, E, size)
    rows = layout.row_NA.flatten()
    assert len(rows.unique()) == rows.numel() == 100
    ends = layout.ends_E
    starts = F.pad(ends[:-1], (1, 0))
    assert (starts % size == 0).all() and ends[-1] <= len(layout.token_P)
    assert (rows >= starts[indices_NA.flatten()]).all() and (rows < ends[indices_NA.flatten()]).all()
    assert torch.equal(layout.token_P[layout.row_NA], torch.arange(50)[:, None].expand(50, 2))


Product = Callable[[Tensor, Tensor, Layout], Tensor]


@pytest.mark.parametrize("product", [grouped, in_blocks], ids=["grouped", "in_blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_products_are_the_same(product: Product, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    indices_NA = torch.randint(E, (60, 1)) // 2 * 2  # two experts get nothing
    weight = torch.randn(E, D, M).to(dtype).requires_grad_()
    x = torch.randn(60, D).to(dtype).requires_grad_()
    results = []
    for multiply, size in ((product, 1 if product is grouped else 8), (one_by_one, 1)):
        layout = lay_out(indices_NA, E, size)
        y = multiply(x[layout.token_P], weight, layout)[layout.row_NA.flatten()]
        results.append([y, *torch.autograd.grad(y.float().sin().sum(), [x, weight])])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got.float(), want.float(), rtol=tolerance, atol=tolerance)


def test_blocks_keep_their_number_of_rows_known_and_small() -> None:
    m = experts()
    for n_tokens in (1, 40, 2048, 16384):
        on_no_device = torch.empty(n_tokens, D, device="meta")
        size = m._block_size(on_no_device, 2 * n_tokens)
        assert size in (8, 16, 32, 64, 128)
        n_rows = (2 * n_tokens // size + E) * size
        assert n_rows <= max(2.5 * n_tokens, 2 * n_tokens + 8 * E)
    assert m._block_size(torch.empty(40, D), 80) == 1


def test_bias_changes_the_choice_and_never_the_weight() -> None:
    m, logits = experts(), inputs()[1]
    plain = m.choose(logits, NO_TAPS)
    m.bias_E.copy_(torch.tensor([0.0, 0.0, 100.0, 100.0]))
    forced = m.choose(logits, NO_TAPS)
    assert (forced.indices_BCA.sort(-1).values == torch.tensor([2, 3])).all()
    assert torch.allclose(forced.weights_BCA, logits.gather(-1, forced.indices_BCA).softmax(-1))
    m.bias_E.fill_(7.0)  # the same for all: nothing changes
    assert torch.equal(m.choose(logits, NO_TAPS).indices_BCA, plain.indices_BCA)
    assert torch.equal(m.choose(logits, NO_TAPS).weights_BCA, plain.weights_BCA)


def test_a_lone_expert_still_teaches_the_router() -> None:
    m, (x, logits) = experts(n_active=1), inputs()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(m(x, logits, NO_TAPS)[0].sum(), logits)
    chosen = F.one_hot(logits.argmax(-1), E).bool()
    assert gradient[chosen].all() and not gradient[~chosen].any()
    assert (m.choose(torch.zeros(1, 1, E), NO_TAPS).weights_BCA == 1).all()


def test_load_is_the_share_of_choices_and_leaves_empty_places_out() -> None:
    m = experts()
    indices = torch.tensor([[[0, 1], [0, 2]], [[0, 1], [3, 1]]])
    assert torch.equal(m.load(indices), torch.tensor([3, 3, 1, 1]) / 8)
    taken = torch.tensor([[True, True], [False, False]])
    assert torch.equal(m.load(indices, taken), torch.tensor([2, 1, 1, 0]) / 4)
    assert torch.equal(m.load(indices, torch.zeros_like(taken)), torch.zeros(E))


def test_a_skewed_start_ends_balanced() -> None:
    m = Experts(D, M, E, 2, "gelu")
    generator = torch.Generator().manual_seed(0)
    loads = []
    for _ in range(300):
        logits = torch.randn(4, 64, E, generator=generator) - torch.arange(E)
        load_E = m.load(m.choose(logits, NO_TAPS).indices_BCA)
        m.update_bias(load_E, rate=0.02)
        loads.append(load_E)
    assert loads[0].max() > 0.4 and loads[0].min() < 0.1
    assert torch.allclose(torch.stack(loads[-50:]).mean(0), torch.full((E,), 1 / E), atol=0.02)
    assert "bias_E" in m.state_dict()


def test_taps_replace_what_is_used() -> None:
    m, (x, logits) = experts(), inputs()
    plain = m(x, logits, NO_TAPS)[0]
    seen: dict[str, tuple[int, ...]] = {}
    assert torch.equal(m(x, logits, Taps({"*": lambda t, name: seen.update({name: tuple(t.shape)})}))[0], plain)
    assert seen == {"experts.weights": (B, C, 2), "experts.post": (B, C, 2, M), "experts.out": (B, C, D)}
    for site in ("experts.weights", "experts.post"):
        assert torch.allclose(m(x, logits, Taps({site: lambda t, _: 3 * t}))[0], 3 * plain)


@pytest.mark.parametrize(("activation", "maps"), [("swiglu", 3), ("relu2", 2)])
def test_flops_and_active_parameters_are_those_counted(activation: str, maps: int) -> None:
    m, (x, logits) = experts(2, activation), inputs()
    assert m.active_parameters == 2 * maps * D * M
    with FlopCounterMode(display=False) as counter:
        m(x, logits, NO_TAPS)
    assert counter.get_total_flops() == m.flops_per_token() * B * C


def test_compiled_in_blocks_without_a_break_equals_eager() -> None:
    torch._dynamo.reset()
    m, (x, logits) = experts(), (t.requires_grad_() for t in inputs())
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for call in (compiled, m):
        y, _ = call(x, logits, NO_TAPS)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, logits, *m.parameters()])])
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_gradients_of_gradients_are_right() -> None:
    layout = lay_out(torch.tensor([[0, 1], [1, 0], [1, 2]]), 3, 8)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x_ND: Tensor) -> Tensor:
        rows = module._Spread.apply(x_ND, layout.token_P, layout.row_NA)
        return module._Collect.apply(rows.sin(), layout.row_NA, layout.token_P)

    assert torch.autograd.gradcheck(there_and_back, (x,)) and torch.autograd.gradgradcheck(there_and_back, (x,))
