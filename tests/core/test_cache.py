"""Static caches: rows of different lengths, overwriting, capacity."""

from __future__ import annotations

import pytest
import torch

from homunculi.core.cache import Cache, KVSlot
from homunculi.errors import InputError

CPU = torch.device("cpu")


def new_cache(batch_size: int = 2, capacity: int = 6) -> Cache:
    return Cache([KVSlot.empty((batch_size, 1, capacity, 4), torch.float32, CPU)], batch_size, capacity, CPU)


def test_positions_follow_each_row() -> None:
    cache = new_cache()
    assert cache.positions(3).tolist() == [[0, 1, 2], [0, 1, 2]]
    cache.advance(torch.tensor([3, 1]))
    assert cache.positions(2).tolist() == [[3, 4], [1, 2]]
    cache.advance(1)
    assert cache.lengths_B.tolist() == [4, 2]


def test_padding_is_overwritten_by_the_next_tokens_of_its_row() -> None:
    cache = new_cache()
    slot: KVSlot = cache.at(0)
    prompt = torch.arange(2 * 3 * 4.0).reshape(2, 1, 3, 4)
    slot.extend(prompt, -prompt, cache.positions(3))
    cache.advance(torch.tensor([3, 1]))
    following = 100 + torch.arange(2 * 4.0).reshape(2, 1, 1, 4)
    k_BHLK, v_BHLK = slot.extend(following, -following, cache.positions(1))
    assert torch.equal(k_BHLK[0, 0, :4], torch.cat([prompt[0, 0], following[0, 0]]))
    assert torch.equal(k_BHLK[1, 0, :2], torch.cat([prompt[1, 0, :1], following[1, 0]]))
    assert torch.equal(k_BHLK, -v_BHLK)


def test_a_row_beyond_the_capacity_is_refused() -> None:
    cache = new_cache(capacity=6)
    cache.positions(6)
    cache.advance(torch.tensor([5, 2]))
    cache.positions(1)
    with pytest.raises(InputError, match=r"5 \+ 2 tokens do not fit its capacity of 6"):
        cache.positions(2)
    cache.advance(1)
    with pytest.raises(InputError, match="6"):
        cache.positions(1)


def test_keys_are_stored_in_the_type_of_the_cache_and_bytes_are_counted() -> None:
    slot = KVSlot.empty((1, 2, 5, 4), torch.bfloat16, CPU)
    k_BHLK, _ = slot.extend(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), torch.tensor([[4]]))
    assert k_BHLK.dtype == torch.bfloat16 and k_BHLK[0, :, 4].sum() == 8 and k_BHLK.sum() == 8
    assert Cache([slot, slot], 1, 5, CPU).n_bytes == 2 * (2 * 2 * 5 * 4 * 2)
