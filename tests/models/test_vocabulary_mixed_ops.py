"""The readable model of mixed operations: its moving sum is a recurrence at any length and with any decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.models.vocabulary.mixed_ops import Config, MixedOps, moving_sum

FAST = (-30.0, -3.0, 0.0, 3.0, 4.0, 12.0)  # decay logits


def by_recurrence(u_BTV: Tensor, decay_V: Tensor) -> Tensor:
    z_BV, found = torch.zeros_like(u_BTV[:, 0]), []
    for t in range(u_BTV.shape[1]):
        found.append(z_BV)
        z_BV = decay_V * (z_BV + u_BTV[:, t])
    return torch.stack(found, 1)


def built() -> MixedOps:
    torch.manual_seed(0)
    config = Config(vocab_size=19, n_steps=2, max_seq_len=512, d_memory=6, d_mlp=10, d_gate=5)
    return MixedOps(config).double().eval()


def ids(n_tokens: int) -> Tensor:
    return torch.randint(19, (2, n_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 17, 512, 700])
def test_the_moving_sum_is_the_recurrence(n_tokens: int) -> None:
    u_BTV = torch.randn(2, n_tokens, len(FAST), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits_V = torch.tensor(FAST, dtype=torch.float64)
    found = moving_sum(u_BTV, torch.nn.functional.logsigmoid(logits_V))
    assert torch.allclose(found, by_recurrence(u_BTV, logits_V.sigmoid()), rtol=1e-10, atol=1e-10)


def test_the_moving_sum_of_one_document_knows_nothing_of_another() -> None:
    u_BTV = torch.randn(1, 40, len(FAST), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decay_V = torch.nn.functional.logsigmoid(torch.tensor(FAST, dtype=torch.float64))
    starts = (0, 1, 14, 15, 29)
    documents_BT = sum((torch.arange(40) >= start).long() for start in starts)[None]  # type: ignore[union-attr, index]
    found = moving_sum(u_BTV, decay_V, documents_BT)
    for start, end in zip(starts, (*starts[1:], 40), strict=True):
        assert torch.allclose(found[:, start:end], moving_sum(u_BTV[:, start:end], decay_V), atol=1e-12)


@pytest.mark.parametrize("logit", [-4.0, 0.0, 3.0, 4.0])
def test_a_prefix_of_half_the_length_has_the_same_logits(logit: float) -> None:
    model = built()
    for step in model.steps:
        torch.nn.init.constant_(step.average.decay_logit_V, logit)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        whole, half = model(ids(1024)).logits, model(ids(1024)[:, :512]).logits
    assert torch.allclose(whole[:, :512], half, rtol=1e-9, atol=1e-9)


def test_gradients_are_finite_with_the_fastest_and_the_slowest_decay() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        u_BTV = torch.randn(2, 512, len(FAST), generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        logits_V = torch.tensor([-90.0, *FAST[1:-1], 90.0], requires_grad=True)
        found = moving_sum(u_BTV, torch.nn.functional.logsigmoid(logits_V))
        found.float().square().mean().backward()
        assert found.isfinite().all() and found.dtype == dtype
        assert u_BTV.grad is not None and u_BTV.grad.isfinite().all()
        assert logits_V.grad is not None and logits_V.grad.isfinite().all()


def test_decoding_in_pieces_of_any_length_goes_on_exactly() -> None:
    model, ids_BT = built(), ids(60)
    with torch.no_grad():
        whole, cache, found = model(ids_BT).logits, model.new_cache(2, 60), []
        for piece in ids_BT.split([1, 17, 2, 40], 1):
            found.append(model(piece, cache=cache).logits)
            cache.advance(piece.shape[1])
    assert torch.allclose(torch.cat(found, 1), whole, rtol=1e-9, atol=1e-9)


def test_both_memories_share_their_maps_and_differ_by_decay() -> None:
    model = built()
    assert sum("memory." in name for name, _ in model.named_parameters()) == 4
    step = model.steps[0]
    assert step.long.decay_logit.item() == 4 and step.short.decay_logit.item() == 1  # type: ignore[union-attr, operator]


def test_documents_do_not_see_each_other() -> None:
    model, ids_BT = built(), ids(20)
    documents_BT = (torch.arange(20) >= 7).long().expand(2, -1)
    with torch.no_grad():
        together, alone = model(ids_BT, documents_BT=documents_BT).logits, model(ids_BT[:, 7:]).logits
    assert torch.allclose(together[:, 7:], alone)
    assert not torch.allclose(together[:, 7:], model(ids_BT).logits[:, 7:])
