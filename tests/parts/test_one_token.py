"""The kernels of decoding, run by Triton's interpreter, against the general code."""

from __future__ import annotations

import pytest
import torch

from homunculi.core.cache import KVSlot, SlotOfRows
from homunculi.core.taps import NO_TAPS
from homunculi.models import build
from homunculi.parts import one_token
from homunculi.parts.attention import CausalSelfAttention
from homunculi.parts.memory import AssociativeMemory
from homunculi.parts.rope import RotaryEmbedding


@pytest.fixture(autouse=True)
def everywhere(triton_interpreter, monkeypatch):
    """The kernels run on a CPU too."""
    monkeypatch.setattr(one_token, "fits", lambda x, n_tokens: n_tokens == 1 and not torch.is_grad_enabled())


def without_kernels(monkeypatch):
    monkeypatch.setattr(one_token, "fits", lambda x, n_tokens: False)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("rows", [None, [2, 0]])
@torch.no_grad()
def test_one_token_attends_to_the_same_places_as_a_mask_says(monkeypatch, rows, window):
    torch.manual_seed(0)
    attention = CausalSelfAttention(24, 4, 2, 6, window=window)
    n = 3 if rows is None else len(rows)
    asked = None if rows is None else torch.tensor(rows)
    x_B1D, places_B1 = torch.randn(n, 1, 24), torch.tensor([[4], [70], [79]])[:n]
    rotation = RotaryEmbedding(6, 80).at(places_B1, torch.float32)
    ages = places_B1[..., None] - torch.arange(80)
    mask = (ages >= 0) & (ages < window) if window else ages >= 0
    found = []
    for kernels in (True, False):
        if not kernels:
            without_kernels(monkeypatch)
        filled = torch.randn(2, 3, 2, 80, 6, generator=torch.Generator().manual_seed(1))
        whole = KVSlot(*filled.clone())
        slot = whole if rows is None else SlotOfRows(whole, asked)
        found.append((attention(x_B1D, rotation, NO_TAPS, mask, (slot, places_B1)), whole.k_BHLK, whole.v_BHLK))
    for with_kernel, plain in zip(*found, strict=True):
        torch.testing.assert_close(with_kernel, plain)


@pytest.mark.parametrize("rule", ["gated", "delta"])
@pytest.mark.parametrize("rows", [None, [2, 0]])
@torch.no_grad()
def test_one_token_is_remembered_and_read_as_in_a_chunk_of_one(rule, rows):
    torch.manual_seed(0)
    memory = AssociativeMemory(24, 4, 6, rule=rule)
    state = torch.randn(3, 4, 6, 6)
    asked = None if rows is None else torch.tensor(rows)
    n = 3 if rows is None else len(rows)
    x_B1D, write, gate = torch.randn(n, 1, 24), 2 * torch.rand(n, 1, 1), torch.rand(n, 1, 4)
    before = state if asked is None else state[asked]
    wanted, after = memory(x_B1D, write, gate, NO_TAPS, None, before)
    changed = state.clone()
    found = memory.remember(x_B1D, write, gate, NO_TAPS, (changed, asked, None))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(changed if asked is None else changed[asked], after)
    if asked is not None:
        assert torch.equal(changed[1], state[1])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("gpt", {"n_blocks": 1, "n_kv_heads": 1}),
        ("mor", {"n_slots": 4, "n_passes": 2, "capacities": (1.0, 0.5)}),
        ("mor", {"n_slots": 4, "n_passes": 2, "capacities": (1.0, 0.5), "kv": "shared"}),
        ("homunculi", {"n_passes": 2, "window": 4}),
    ],
)
@torch.no_grad()
def test_models_decode_with_the_kernels_as_they_read_a_whole_text(architecture, options):
    torch.manual_seed(0)
    model = build(architecture, vocab_size=19, d_model=16, n_heads=2, max_seq_len=16, **options).eval()
    ids_BT = torch.randint(19, (3, 12))
    cache = model.new_cache(3, 16)
    found = []
    for piece in (ids_BT[:, :5], *ids_BT[:, 5:].split(1, 1)):
        found.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(found, 1), model(ids_BT).logits, atol=1e-4, rtol=1e-4)
