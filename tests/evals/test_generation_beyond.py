"""Text beyond a model's longest sequence: what a running memory keeps of what is no longer read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi import models
from homunculi.core.model import LanguageModel
from homunculi.evals import generation
from homunculi.evals.generation import Sampling, generate

LONGEST, N_NEW = 16, 40
SIZES: dict[str, Any] = {"vocab_size": 31, "d_model": 16, "n_heads": 2, "max_seq_len": LONGEST}


def model(name: str, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    built = models.build(name, **SIZES, **fields).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def said(
    built: LanguageModel, prompts: Sequence[Sequence[int]], monkeypatch: pytest.MonkeyPatch, carry: bool
) -> Tensor:
    """Logits (N, B, V) before each new token, of a text whose tokens are given and not drawn."""
    seen: list[Tensor] = []

    def given(logits_BV: Tensor, *_: Any) -> Tensor:
        seen.append(logits_BV)
        return torch.full((len(prompts),), (7 * len(seen)) % 31)

    monkeypatch.setattr(generation, "_draw", given)
    list(generate(built, prompts, N_NEW, Sampling(carry=carry)))
    return torch.stack(seen)


@pytest.mark.parametrize("name", ["homunculi", "gpt"])
@pytest.mark.parametrize("carry", [True, False])
def test_a_binding_of_long_ago_is_kept_where_memory_is_carried(
    name: str, carry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, prompts = model(name), [[3, 4, 5, 6], [9, 8, 7]]
    other = [[21, 4, 5, 6], [9, 8, 7]]
    before, after = (said(built, p, monkeypatch, carry) for p in (prompts, other))
    moved_NB = (before - after).abs().amax(-1)
    assert (moved_NB[: LONGEST - 4, 0] > 1e-9).all()
    beyond_N = moved_NB[2 * LONGEST :, 0]
    assert (beyond_N > 1e-6).all() if carry and name == "homunculi" else not beyond_N.any()
    assert moved_NB[:, 1].max() < 1e-9, "another row's text is heard"


def test_what_is_carried_has_read_every_token_once() -> None:
    """At a turn-over the memory is the one that reading had left before the first token that is read again."""
    built = model("homunculi")
    text = torch.randint(31, (LONGEST + 1,), generator=torch.Generator().manual_seed(1)).tolist()
    kept = LONGEST // 2
    cache = built.new_cache(1, LONGEST)
    for token in text[:-kept]:
        built(torch.tensor([[token]]), cache=cache)
        cache.advance(1)
    before = generation._remember(built, [text[:-kept]], None, torch.device("cpu"))
    assert before is not None and len(before.running) == built.config.n_passes
    for mine, theirs in zip(before.running, cache.running, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    fresh, _ = generation._read(built, [text[-kept:]], torch.device("cpu"), before)
    assert all(not torch.allclose(a, b) for a, b in zip(fresh.running, before.running, strict=True))


def test_a_prompt_beyond_the_longest_sequence_is_remembered_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model("homunculi")
    text = torch.randint(31, (3 * LONGEST,), generator=torch.Generator().manual_seed(1)).tolist()
    other = [(text[0] + 1) % 31, *text[1:]]
    for carry in (True, False):
        before, after = (said(built, [t], monkeypatch, carry)[0] for t in (text, other))
        assert torch.equal(before, after) is not carry
