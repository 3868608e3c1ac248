"""The chunked memory is the recursion it stands for, carries over calls, and binds further than any window.

Legend: B batch, C tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.taps import NO_TAPS, Taps
from homunculi.parts.memory import CHUNK, AssociativeMemory, decay_between, running_sum

Rule = Literal["gated", "delta"]
RULES: tuple[Rule, ...] = ("gated", "delta")
D, H, K = 12, 3, 4
rules = pytest.mark.parametrize("rule", RULES)


def memory(rule: Rule) -> AssociativeMemory:
    torch.manual_seed(0)
    return AssociativeMemory(D, H, K, rule=rule).double()


def inputs(n_tokens: int, n_rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Input, write factor and head gate."""
    torch.manual_seed(n_tokens)
    x_BCD = torch.randn(n_rows, n_tokens, D, dtype=torch.float64)
    return x_BCD, torch.rand_like(x_BCD[..., :1]) * 1.5, torch.rand_like(x_BCD[..., :H])


def token_by_token(
    m: AssociativeMemory, x_BCD: Tensor, write_BC1: Tensor, gate_BCH: Tensor, state_BHKK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recursion as it is written."""

    def heads(layer: nn.Linear) -> Tensor:
        return (x_BCD @ layer.weight.T).unflatten(-1, (H, -1))

    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (heads(m.q), heads(m.k)))
    alpha = torch.exp(-F.softplus(heads(m.forget)[..., 0] + m.forget_bias_H))
    beta = torch.sigmoid(heads(m.write)[..., 0] + m.write_bias_H) * write_BC1
    state = m.empty_state(len(x_BCD)) if state_BHKK is None else state_BHKK
    z = []
    for t in range(x_BCD.shape[1]):
        state = alpha[:, t, :, None, None] * state
        wanted, strength = heads(m.v)[:, t], beta[:, t, :, None]
        if m.rule == "delta":
            wanted, strength = wanted - torch.einsum("bhkv,bhk->bhv", state, k[:, t]), strength.clamp(max=1)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], strength * wanted)
        z.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    z_BCHK = torch.stack(z, 1)
    z_BCHK = z_BCHK / torch.sqrt(z_BCHK.square().mean(-1, keepdim=True) + 1e-6) * m.norm.weight * gate_BCH[..., None]
    return z_BCHK.flatten(2) @ m.o.weight.T, state


@rules
def test_documents_begin_with_an_empty_memory(rule: Rule) -> None:
    """Borders inside chunks, at their ends, and documents longer than a chunk; gradients too."""
    m, sizes = memory(rule), (CHUNK + 6, 1, 2, CHUNK - 9, 3 * CHUNK, 5)
    x_BCD, write_BC1, gate_BCH = inputs(sum(sizes))
    documents_BC = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).expand(2, -1)
    x_BCD.requires_grad_()
    packed, _ = m(x_BCD, write_BC1, gate_BCH, NO_TAPS, documents_BC=documents_BC)
    pieces = zip(*(t.split(sizes, 1) for t in (x_BCD, write_BC1, gate_BCH)), strict=True)
    apart = torch.cat([m(*piece, NO_TAPS)[0] for piece in pieces], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(out.square().sum(), x_BCD)[0] for out in (packed, apart)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@rules
@pytest.mark.parametrize("n_tokens", [1, 5, CHUNK, CHUNK + 1, 3 * CHUNK - 7])
def test_equals_the_recursion_in_float64_whatever_the_length(rule: Rule, n_tokens: int) -> None:
    m, (x, write, gate) = memory(rule), inputs(n_tokens)
    state = torch.randn(2, H, K, K, dtype=torch.float64)
    for start in (None, state):
        out, after = m(x, write, gate, NO_TAPS, None, start)
        want, want_after = token_by_token(m, x, write, gate, start)
        assert torch.allclose(out, want, rtol=1e-10, atol=1e-11)
        assert torch.allclose(after, want_after, rtol=1e-10, atol=1e-11)


@rules
def test_gradients_equal_those_of_the_recursion(rule: Rule) -> None:
    m, start = memory(rule), torch.randn(2, H, K, K, dtype=torch.float64).requires_grad_()
    given = [t.requires_grad_() for t in inputs(CHUNK + 9)]
    gradients = []
    for out, after in (m(*given, NO_TAPS, None, start), token_by_token(m, *given, start)):
        loss = out.square().sum() + after.square().sum()
        gradients.append(torch.autograd.grad(loss, [*given, start, *m.parameters()]))
    for got, want in zip(*gradients, strict=True):
        assert want.any() and torch.allclose(got, want, rtol=1e-7, atol=1e-9)


@rules
def test_calls_that_hand_on_the_memory_equal_one_call(rule: Rule) -> None:
    m, (x, write, gate) = memory(rule), inputs(150)
    want, want_after = m(x, write, gate, NO_TAPS)
    state, outs = None, []
    for start, end in [(0, 1), (1, 2), (2, 40), (40, 149), (149, 150)]:
        part = slice(start, end)
        out, state = m(x[:, part], write[:, part], gate[:, part], NO_TAPS, None, state)
        outs.append(out)
    assert state is not None
    assert torch.allclose(torch.cat(outs, 1), want, rtol=1e-10, atol=1e-11)
    assert torch.allclose(state, want_after, rtol=1e-10, atol=1e-11)


@rules
def test_empty_places_neither_write_nor_let_time_pass(rule: Rule) -> None:
    m, (x, write, gate) = memory(rule), inputs(90)
    taken = torch.rand(2, 90) < 0.4
    taken[0] = False
    out, after = m(x, write, gate, NO_TAPS, taken)
    assert not after[0].any()
    only = taken[1]
    want, want_after = m(*(t[1:, only] for t in (x, write, gate)), NO_TAPS)
    assert torch.allclose(out[1:, only], want, rtol=1e-10, atol=1e-11)
    assert torch.allclose(after[1:], want_after, rtol=1e-10, atol=1e-11)


@rules
def test_later_tokens_and_other_rows_change_nothing(rule: Rule) -> None:
    m, (x, write, gate) = memory(rule), inputs(100)
    plain, _ = m(x, write, gate, NO_TAPS)
    changed = x.clone()
    changed[0, 70:] += 5
    out, _ = m(changed, write, gate, NO_TAPS)
    assert torch.allclose(out[0, :70], plain[0, :70], rtol=1e-12, atol=1e-13)
    assert torch.allclose(out[1], plain[1], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(out[0, 70:], plain[0, 70:], rtol=1e-3)


def test_decay_never_exceeds_one_even_where_sums_are_rounded() -> None:
    torch.manual_seed(0)
    since = running_sum(-20 * torch.rand(50, CHUNK) ** 8)
    assert torch.allclose(since, since.diff(prepend=torch.zeros(50, 1)).cumsum(-1), rtol=1e-5)
    ratio = decay_between(since)
    assert (ratio <= 1).all() and not ratio.triu(1).any() and (ratio.diagonal(dim1=1, dim2=2) == 1).all()


@rules
@pytest.mark.parametrize("forget", [0.0, 1e-3, 1e6], ids=["never", "slowly", "at once"])
def test_nothing_explodes_over_4096_tokens(rule: Rule, forget: float) -> None:
    m = memory(rule).float()
    x = torch.randn(1, 4096, D).requires_grad_()
    taps = Taps({"memory.forget": lambda t, _: torch.full_like(t, forget)})
    out, after = m(x, torch.full((1, 4096, 1), 1.5), None, taps)
    out.square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert after.isfinite().all() and after.abs().max() < 4096 * 1.5
    want, _ = m.double()(x.double(), torch.full((1, 4096, 1), 1.5), None, taps)
    assert (out - want).abs().max() < 1e-3


@rules
def test_bfloat16_stays_near(rule: Rule) -> None:
    m, (x, write, gate) = memory(rule), inputs(200)
    want, want_after = m(x, write, gate, NO_TAPS)
    out, after = m.float()(x.bfloat16(), write.bfloat16(), gate.bfloat16(), NO_TAPS)
    assert out.dtype == torch.bfloat16 and after.dtype == torch.float32
    assert (out - want).norm() / want.norm() < 0.03
    assert (after - want_after).norm() / want_after.norm() < 0.03


def test_heads_start_with_time_constants_from_tens_to_a_thousand_tokens() -> None:
    m = AssociativeMemory(D, 4, K)
    tokens = 1 / F.softplus(m.forget_bias_H)
    assert torch.allclose(tokens, torch.tensor([1024.0, 256.0, 64.0, 16.0]), rtol=1e-3)


def test_taps_replace_what_is_used() -> None:
    m, (x, write, gate) = memory("gated"), inputs(20)
    _, after = m(x, write, gate, Taps({"memory.write": lambda t, _: torch.zeros_like(t)}))
    assert not after.any()
    for site in ("q", "k", "v", "forget", "write", "z", "out"):
        out, _ = m(x, write, gate, Taps({f"memory.{site}": lambda t, _: t + torch.rand_like(t)}))
        assert not torch.allclose(out, m(x, write, gate, NO_TAPS)[0], rtol=1e-3)


@rules
@pytest.mark.parametrize("n_tokens", [1, 20, CHUNK + 1, 520])
def test_flops_are_those_counted(rule: Rule, n_tokens: int) -> None:
    m = AssociativeMemory(D, H, K, rule=rule)
    with FlopCounterMode(display=False) as counter:
        m(torch.randn(2, n_tokens, D), None, None, NO_TAPS)
    assert m.flops_per_token(n_tokens) == pytest.approx(counter.get_total_flops() / (2 * n_tokens), abs=0.5)


@rules
def test_compiled_equals_eager(rule: Rule) -> None:
    torch._dynamo.reset()
    m, x = memory(rule), inputs(100)[0]
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True, dynamic=False)
    for got, want in zip(compiled(x, None, None, NO_TAPS), m(x, None, None, NO_TAPS), strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


# Recall: 8 pairs of key and value, a silence longer than a window of 64 tokens, then the keys in another order.
N_KEYS, N_VALUES, N_PAIRS, SILENCE = 16, 8, 8, 70


def recall_batch(n_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (B, C), and the value bound to each of the last 8 keys, (B, 8)."""
    keys = torch.rand(n_rows, N_KEYS, generator=generator).argsort(1)[:, :N_PAIRS]
    values = torch.randint(N_VALUES, (n_rows, N_PAIRS), generator=generator)
    pairs = torch.stack([keys, values + N_KEYS], 2).flatten(1)
    order = torch.rand(n_rows, N_PAIRS, generator=generator).argsort(1)
    silence = torch.full((n_rows, SILENCE), N_KEYS + N_VALUES)
    return torch.cat([pairs, silence, keys.gather(1, order)], 1), values.gather(1, order)


class Recaller(nn.Module):
    """A memory whose input holds each token and the one before it, so that a pair can be bound."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.embed = nn.Embedding(N_KEYS + N_VALUES + 1, 16)
        self.memory = AssociativeMemory(32, 2, 16, rule=rule)
        self.readout = nn.Linear(32, N_VALUES)

    def forward(self, ids_BC: Tensor, gate: float = 1.0) -> Tensor:
        now = self.embed(ids_BC)
        x_BCD = F.rms_norm(torch.cat([now, F.pad(now[:, :-1], (0, 0, 1, 0))], -1), (32,))
        gate_BCH = torch.full((*ids_BC.shape, 2), gate)
        return self.readout(self.memory(x_BCD, None, gate_BCH, NO_TAPS)[0][:, -N_PAIRS:])


@rules
def test_a_binding_is_recalled_beyond_any_window_and_only_with_the_memory(rule: Rule) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Recaller(rule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(140):
        ids, values = recall_batch(16, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), values.flatten()).backward()
        optimizer.step()
    ids, values = recall_batch(128, generator)
    with torch.no_grad():
        right = (model(ids).argmax(-1) == values).float().mean()
        ablated = (model(ids, gate=0.0).argmax(-1) == values).float().mean()
    assert right > 0.9 and ablated < 2 / N_VALUES
