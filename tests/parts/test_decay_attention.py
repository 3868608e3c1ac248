"""The decaying memory: read at once, in pieces on top of a memory, and token by token it is one function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.parts import decay_attention as part
from homunculi.parts.decay_attention import DecaySlot, decay_attention
from homunculi.parts.readable import Reading

PIECE = 16
LOG_DECAY = torch.tensor([-0.004, -0.3], dtype=torch.float64)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "PIECE", PIECE)


def drawn(n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 2 rows and 2 heads."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 2, n_tokens, 6, dtype=torch.float64)
    return q, k, torch.randn(2, 2, n_tokens, 5, dtype=torch.float64)


def empty() -> DecaySlot:
    return DecaySlot(torch.zeros(2, 2, 6, 5, dtype=torch.float64))


def cut(tensors: tuple[Tensor, ...], start: int, end: int) -> list[Tensor]:
    return [tensor[:, :, start:end] for tensor in tensors]


@pytest.mark.parametrize("n_tokens", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_a_prompt_longer_than_a_piece_is_read_as_token_by_token(n_tokens: int) -> None:
    qkw, at_once, by_one = drawn(n_tokens), empty(), empty()
    z = decay_attention(*qkw, LOG_DECAY, Reading(at_once))
    steps = [decay_attention(*cut(qkw, i, i + 1), LOG_DECAY, Reading(by_one)) for i in range(n_tokens)]
    torch.testing.assert_close(z, torch.cat(steps, 2))
    torch.testing.assert_close(z, decay_attention(*qkw, LOG_DECAY, Reading()))
    torch.testing.assert_close(at_once.state_BHKJ, by_one.state_BHKJ)


def test_rows_whose_padding_begins_in_different_pieces_remember_their_own_tokens_alone() -> None:
    n_tokens, lengths = 2 * PIECE + 9, (PIECE - 3, 2 * PIECE + 4)
    qkw, slot = drawn(n_tokens), empty()
    valid_BT = torch.arange(n_tokens) < torch.tensor(lengths)[:, None]
    decay_attention(*qkw, LOG_DECAY, Reading(slot, valid_BT=valid_BT))
    for row, length in enumerate(lengths):
        alone = empty()
        decay_attention(*cut(qkw, 0, length), LOG_DECAY, Reading(alone))
        torch.testing.assert_close(slot.state_BHKJ[row], alone.state_BHKJ[row])


def test_no_more_scores_than_those_of_a_piece_are_made_on_top_of_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = part.decay_before

    def watched(n: int, log_decay_H: Tensor) -> Tensor:
        asked.append(n)
        return whole(n, log_decay_H)

    monkeypatch.setattr(part, "decay_before", watched)
    decay_attention(*drawn(3 * PIECE + 2), LOG_DECAY, Reading(empty()))
    assert asked == [PIECE, PIECE, PIECE, 2]
