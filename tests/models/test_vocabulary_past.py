"""How far back readable models of convolutions, shared attention and adaptive memories see, and what they keep of it.

Legend: B batch, T positions, S earlier positions, V vocabulary, K width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.models import build
from homunculi.models.vocabulary.adaptive import remembered

SHAPES: dict[str, dict[str, Any]] = {
    "vocab_convolution": {"n_steps": 2, "kernel_size": 4, "n_waves": 5, "n_channels": 6},
    "vocab_shared_attention": {"n_steps": 2, "n_heads": 3, "n_kv_heads": 1, "n_waves": 5, "n_channels": 6},
    "vocab_adaptive": {"n_steps": 2, "kernel_size": 4, "d_slice": 11, "n_waves": 5, "n_channels": 6},
}


def awake(name: str) -> LanguageModel:
    """In float64, with weights large enough that every part has a say."""
    torch.manual_seed(0)
    model = build(name, vocab_size=29, max_seq_len=24, **SHAPES[name]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def drawn(n_tokens: int) -> Tensor:
    return torch.randint(29, (2, n_tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_convolution_sees_as_far_as_its_steps_reach_together() -> None:
    model, ids_BT = awake("vocab_convolution"), drawn(20)
    changed_BT = ids_BT.clone()
    changed_BT[:, 2] = (changed_BT[:, 2] + 1) % 29
    moved_T = (model(ids_BT).logits - model(changed_BT).logits).abs().amax((0, 2))
    reach = 2 * (4 - 1)
    assert (moved_T[2 : 2 + reach + 1] > 0).all()
    assert not moved_T[:2].any() and not moved_T[2 + reach + 1 :].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vocab_shared_attention", "vocab_adaptive"])
def test_attention_and_memories_see_the_first_token_from_everywhere(name: str) -> None:
    model, ids_BT = awake(name), drawn(20)
    changed_BT = ids_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % 29
    assert ((model(ids_BT).logits - model(changed_BT).logits).abs().amax((0, 2)) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_a_document_is_read_as_if_no_other_came_before_it(name: str) -> None:
    model, ids_BT = awake(name), drawn(17)
    documents_BT = torch.arange(17).ge(9).long().expand(2, -1)
    together = model(ids_BT, documents_BT=documents_BT).logits
    torch.testing.assert_close(together[:, :9], model(ids_BT[:, :9]).logits)
    apart = model(ids_BT[:, 9:]).logits
    torch.testing.assert_close(together[:, 9:], apart)
    assert not torch.allclose(model(ids_BT).logits[:, 9:], apart)


@torch.no_grad()
@pytest.mark.parametrize("n_tokens", [7, 300])
def test_each_memory_decays_at_the_rate_of_its_own_token(n_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n_tokens, 5, generator=generator).double() for _ in range(3))
    decay_BT = 0.9 + 0.1 * torch.rand(2, n_tokens, generator=generator).double()
    expected = torch.zeros_like(v)
    weight_BT = torch.zeros_like(decay_BT)  # what is left of each memory, aged one token after the other
    for t in range(n_tokens):
        expected[:, t] = ((q[:, t : t + 1] * k).sum(-1) * weight_BT)[:, None].matmul(v)[:, 0]
        weight_BT = weight_BT * decay_BT
        weight_BT[:, t] = 1
    torch.testing.assert_close(remembered(q, k, v, decay_BT.log(), None), expected)


@torch.no_grad()
def test_a_token_says_how_long_it_is_remembered() -> None:
    """Where all decays are those of one token that forgets at once, only the last token is left to a memory."""
    q, k, v = torch.randn(3, 1, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    found = remembered(q, k, v, torch.full((1, 6), -80.0).double(), None)
    one_back = (q[:, 1:] * k[:, :-1]).sum(-1, keepdim=True) * v[:, :-1]
    torch.testing.assert_close(found[:, 1:], one_back)
    assert not found[:, 0].any()


def test_attention_adds_nothing_before_training_and_its_output_learns_first() -> None:
    torch.manual_seed(0)
    model = build("vocab_shared_attention", vocab_size=29, max_seq_len=24, **SHAPES["vocab_shared_attention"])
    ids_BT = drawn(12)
    changed_BT = ids_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % 29
    assert torch.equal(model(ids_BT).logits[:, 1:], model(changed_BT).logits[:, 1:])
    model(ids_BT).logits.square().sum().backward()
    gradients = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}
    assert gradients["attn.o.weight"] and not gradients["attn.q.weight"]


@pytest.mark.parametrize(
    ("field", "value"), [("n_kv_heads", 5), ("d_head", 3), ("n_heads", 16), ("n_waves", 0), ("rope_base", 1.0)]
)
def test_shapes_that_no_attention_has_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"model.{field}"):
        build("vocab_shared_attention", vocab_size=29, **({"n_kv_heads": 1} | {field: value}))
