"""The low-rank readable model: what it passes on is what was read."""

from __future__ import annotations

import torch

from homunculi.core.taps import Recording
from homunculi.models.vocabulary.low_rank import Config, LowRank


def built(**config: float) -> LowRank:
    torch.manual_seed(0)
    return LowRank(Config(**({"vocab_size": 19, "n_steps": 2, "rank": 6} | config))).double().eval()


def ids(n_tokens: int) -> torch.Tensor:
    return torch.randint(19, (2, n_tokens), generator=torch.Generator().manual_seed(1))


def test_the_first_step_recalls_only_tokens_that_were_read_before_and_are_alike() -> None:
    ids_BT, seen = torch.tensor([[3, 5, 3, 7, 5, 3]]), Recording("steps.0.attn.z")
    with torch.no_grad():
        built(first_decay=0.0)(ids_BT, seen)
    z_TV = seen["steps.0.attn.z"][0]
    assert not z_TV[[0, 1, 3]].any()  # their words are new
    size = 19**1.5 * (1 + 19 * torch.finfo(torch.float32).eps) ** -3  # (q · k) w of two states of square mean 1
    for t, word, weights in ((2, 3, 0.5), (4, 5, 0.25), (5, 3, 0.25 + 0.0625)):
        assert torch.allclose(z_TV[t, word], torch.tensor(weights * size, dtype=torch.float64), rtol=1e-5)
        assert z_TV[t].count_nonzero() == 1


def test_long_rows_by_chunks_and_short_ones_by_scores_agree() -> None:
    model = built()
    with torch.no_grad():
        long, short = model(ids(300)).logits, model(ids(300)[:, :100]).logits
    assert torch.allclose(long[:, :100], short, rtol=1e-9, atol=1e-9)


def test_documents_do_not_see_each_other() -> None:
    model, ids_BT = built(), ids(12)
    documents_BT = (torch.arange(12) >= 5).long().expand(2, -1)
    with torch.no_grad():
        together, alone = model(ids_BT, documents_BT=documents_BT).logits, model(ids_BT[:, 5:]).logits
    assert torch.allclose(together[:, 5:], alone)
    assert not torch.allclose(together[:, 5:], model(ids_BT).logits[:, 5:])
