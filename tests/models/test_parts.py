"""Shared parts against their definitions: rotary positions, attention, feed-forward, norm.

Legend: B batch, T positions, S positions attended to, D width, H heads, G key-value heads, K head width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from homunculi.core.cache import Cache, KVSlot
from homunculi.core.taps import NO_TAPS, Recording, TapPoint, Taps
from homunculi.parts.attention import CausalSelfAttention
from homunculi.parts.linear import Linear
from homunculi.parts.mlp import MLP, SwiGLU, feed_forward, squared_relu
from homunculi.parts.norm import RMSNorm
from homunculi.parts.rope import RotaryEmbedding, rotate

B, T, D, H, G, K = 2, 9, 12, 4, 2, 6
ROPE = RotaryEmbedding(K, 16).double()
X_BTD = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attention(**options: Any) -> CausalSelfAttention:
    torch.manual_seed(0)
    return CausalSelfAttention(D, H, G, K, **options).double().eval()


def attend(module: CausalSelfAttention, taps: TapPoint = NO_TAPS, mask_BTS: Tensor | None = None) -> Tensor:
    return module(X_BTD, ROPE.at(slice(0, T), torch.float64), taps, mask_BTS)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(i=st.integers(0, 40), j=st.integers(0, 40), shift=st.integers(0, 20))
def test_rotated_products_depend_on_distance_alone(i: int, j: int, shift: int) -> None:
    rope = RotaryEmbedding(8, 64).double()
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)

    def product(at_q: int, at_k: int) -> Tensor:
        rotated = [rotate(x, rope.at(torch.tensor([[n]]), x.dtype)) for x, n in ((q, at_q), (k, at_k))]
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(product(i, j), product(i + shift, j + shift), rtol=1e-5, atol=1e-5)


def test_rotation_is_that_of_the_complex_plane_and_keeps_length() -> None:
    x_BTHK = torch.randn(B, T, H, K, dtype=torch.float64)
    rotated = rotate(x_BTHK, ROPE.at(slice(0, T), torch.float64))
    rates = 10000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    angles = torch.outer(torch.arange(T, dtype=torch.float64), rates)[:, None]
    turned = torch.complex(*x_BTHK.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    close(rotated, torch.cat([turned.real, turned.imag], -1))
    close(rotated.norm(dim=-1), x_BTHK.norm(dim=-1))
    assert torch.equal(rotated[:, 0], x_BTHK[:, 0])


def test_slices_and_positions_give_the_same_rotation() -> None:
    by_slice = ROPE.at(slice(0, T), torch.float64)
    by_position = ROPE.at(torch.arange(T).expand(B, T), torch.float64)
    for a, b in zip(by_slice, by_position, strict=True):
        assert torch.equal(a.expand_as(b), b)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_its_definition(qk_norm: bool) -> None:
    module = attention(qk_norm=qk_norm)
    rotation = ROPE.at(slice(0, T), torch.float64)
    q, k, v = (F.linear(X_BTD, m.weight).unflatten(-1, (-1, K)) for m in (module.q, module.k, module.v))
    q, k = (rotate(norm(x), rotation).transpose(1, 2) for norm, x in ((module.q_norm, q), (module.k_norm, k)))
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v.transpose(1, 2)))
    scores = (q @ k.mT / K**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    close(attend(module), module.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


def test_joined_projection_equals_separate_products() -> None:
    module, seen = attention(), Recording("attn.q", "attn.k", "attn.v")
    attend(module, seen)
    for name, part in (("q", module.q), ("k", module.k), ("v", module.v)):
        close(seen[f"attn.{name}"].flatten(2), F.linear(X_BTD, part.weight))


def test_pattern_rows_sum_to_one_and_see_nothing_later() -> None:
    seen = Recording("attn.pattern", "attn.scores")
    attend(attention(), seen)
    pattern_BHTS = seen["attn.pattern"]
    assert pattern_BHTS.shape == (B, H, T, T)
    close(pattern_BHTS.sum(-1), torch.ones(B, H, T, dtype=torch.float64))
    assert not pattern_BHTS.triu(1).any()
    assert seen["attn.scores"].triu(1).isinf().sum() == B * H * T * (T - 1) // 2


def same(tensor: Tensor, name: str) -> Tensor:
    return tensor.clone()


@pytest.mark.parametrize("site", ["attn.scores", "attn.pattern"])
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_pattern_equals_the_fused_attention(site: str, masked: bool) -> None:
    mask_BTS = torch.ones(B, T, T, dtype=torch.bool).tril() if masked else None
    if mask_BTS is not None:
        mask_BTS[1, :, 2] = False
        mask_BTS[1, 2, 2] = True
    close(attend(attention(), Taps({site: same}), mask_BTS), attend(attention(), NO_TAPS, mask_BTS))


def test_reading_the_pattern_leaves_the_bits_of_the_fused_attention() -> None:
    assert torch.equal(attend(attention(), Recording("*")), attend(attention()))


def test_a_replaced_pattern_is_used() -> None:
    identity = torch.eye(T, dtype=torch.float64).expand(B, H, T, T)
    module, seen = attention(), Recording("attn.v", "attn.z", others={"attn.pattern": lambda t, name: identity})
    attend(module, seen)
    close(seen["attn.z"], seen["attn.v"].repeat_interleave(H // G, dim=2))


def test_cached_attention_equals_the_full_one() -> None:
    module, capacity = attention(qk_norm=True), 12
    cache = Cache(
        [KVSlot.empty((B, G, capacity, K), torch.float64, torch.device("cpu"))], B, capacity, ROPE.cos_LK.device
    )
    pieces = []
    for part in X_BTD.split([4, 1, 1, 3], dim=1):
        positions_BT = cache.positions(part.shape[1])
        mask_BTS = torch.arange(capacity) <= positions_BT[..., None]
        rotation = ROPE.at(positions_BT, torch.float64)
        pieces.append(module(part, rotation, NO_TAPS, mask_BTS, (cache.at(0), positions_BT)))
        cache.advance(part.shape[1])
    close(torch.cat(pieces, 1), attend(module))


def test_attention_dropout_acts_in_training_only() -> None:
    module = attention(dropout=0.5)
    assert torch.equal(attend(module), attend(module))
    module.train()
    assert not torch.allclose(attend(module), attend(module))


@pytest.mark.parametrize(
    ("activation", "formula"), [("gelu", F.gelu), ("relu2", lambda x: F.relu(x) ** 2), ("swiglu", None)]
)
def test_feed_forward_is_its_definition(activation: str, formula: Any) -> None:
    module, seen = feed_forward(D, 20, activation).double(), Recording("*")
    out = module(X_BTD, seen)
    inner = F.linear(X_BTD, module["in"].weight)
    hidden = formula(inner) if formula else F.silu(F.linear(X_BTD, module["gate"].weight)) * inner
    close(out, F.linear(hidden, module["out"].weight))
    assert list(seen) == ["mlp.pre", "mlp.post", "mlp.out"]
    assert isinstance(module, SwiGLU if formula is None else MLP)


def test_squared_relu() -> None:
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_norm_divides_by_the_root_mean_square_of_the_last_axis() -> None:
    norm, x = RMSNorm(D).double(), 7 * X_BTD
    close(norm(x).square().mean(-1), torch.ones(B, T, dtype=torch.float64))
    with torch.no_grad():
        norm.weight.mul_(2)
    close(norm(x), 2 * x / x.square().mean(-1, keepdim=True).sqrt())


def test_weights_stay_wide_when_activations_are_narrow() -> None:
    for module in (Linear(D, 5), RMSNorm(D)):
        y = module(torch.randn(3, D, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16 and module.weight.dtype == torch.float32
        y.float().sum().backward()
        assert module.weight.grad is not None and module.weight.grad.dtype == torch.float32
