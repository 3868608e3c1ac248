"""Attention in a window, computed piece by piece."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.cache import KVSlot
from homunculi.core.taps import NO_TAPS, Recording
from homunculi.parts.attention import CausalSelfAttention, attend_in_window, window_flops
from homunculi.parts.gathered import gather
from homunculi.parts.kv_sharing import Attention, Earlier
from homunculi.parts.rope import RotaryEmbedding


def masked(q, k, v, window):
    n = q.shape[2]
    seen = torch.ones(n, n, dtype=torch.bool).tril().triu(1 - window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


@pytest.mark.parametrize(("n_tokens", "window"), [(7, 3), (16, 4), (17, 16), (9, 1), (64, 5)])
@pytest.mark.parametrize("groups", [4, 2])
def test_pieces_give_what_a_mask_gives(n_tokens, window, groups):
    generator = torch.Generator().manual_seed(n_tokens)
    q, k, v = (
        torch.randn(2, heads, n_tokens, 6, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, groups, groups)
    )
    found = attend_in_window(q, k, v, window, enable_gqa=True)
    wanted = masked(q, k, v, window)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    for mine, theirs in zip(gradients, torch.autograd.grad((wanted * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_the_pattern_shown_is_the_one_used():
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, 2, 2, 8, window=3).double()
    rotation = RotaryEmbedding(8, 10, 10_000.0).at(slice(0, 10), torch.float64)
    x = torch.randn(1, 10, 16, dtype=torch.float64)
    taps = Recording("*")
    plain, shown = attention(x, rotation, NO_TAPS), attention(x, rotation, taps)
    torch.testing.assert_close(plain, shown, rtol=0, atol=0)
    pattern = taps["attn.pattern"]
    assert (pattern > 0).sum(-1)[0, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    z = pattern @ taps["attn.v"].transpose(1, 2)
    torch.testing.assert_close(z.transpose(1, 2), taps["attn.z"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n_tokens", "window"), [(16, 4), (18, 4), (8, 0), (8, 20)])
def test_flops_are_those_counted(n_tokens, window):
    attention = CausalSelfAttention(16, 2, 2, 8, window=window)
    rotation = RotaryEmbedding(8, n_tokens, 10_000.0).at(slice(0, n_tokens), torch.float32)
    # What the fused operation of a CPU does is not counted; the same by single products is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        attention(torch.randn(3, n_tokens, 16), rotation, NO_TAPS)
    maps = 2 * 4 * 16 * 16
    wanted = 3 * n_tokens * (maps + window_flops(n_tokens, 16, window))
    assert counter.get_total_flops() == pytest.approx(wanted, abs=0.5)


def test_later_queries_look_through_the_window_from_where_they_stand() -> None:
    """Queries of some tokens, spread to their places, find what a mask lets them find, and give the same gradients."""
    torch.manual_seed(0)
    attention = Attention(16, 4, 2, 4, qk_norm=True, window=3).double()
    rope = RotaryEmbedding(4, 11, 10_000.0)
    taking = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1], [0] * 9 + [1, 1]])
    block = gather(taking.cumsum(1), 7)
    index_BC, taken_BC = block.selection.index_BC, block.selection.taken_BC
    k, v = (torch.randn(2, 2, 11, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x, factor = torch.randn(2, 7, 16, dtype=torch.float64), torch.rand(2, 7, 1, dtype=torch.float64)
    ages = index_BC[..., None] - torch.arange(11)
    seen = (ages >= 0) & (ages < 3)
    results = []
    for earlier in (Earlier(KVSlot(k, v), asking=block), Earlier(KVSlot(k, v))):
        rotation = rope.at(index_BC, torch.float64)
        out = attention(x, rotation, NO_TAPS, seen, (earlier, index_BC), factor)[taken_BC]
        results.append([out, *torch.autograd.grad(out.square().sum(), (k, v, attention.q.weight))])
    assert len(results[0][0]) == 7 + 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
