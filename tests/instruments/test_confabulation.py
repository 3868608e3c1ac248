"""Models that know what they were told, that always answer, and that nobody trained."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from homunculi.core.output import Output
from homunculi.instruments.confabulation import FEWEST_PAIRS, encoded, measure, pairs
from homunculi.instruments.observation import Observation
from homunculi.models import build
from homunculi.text.tokenizers import ByteTokenizer

V = 600


class Words:
    """A vocabulary of words and signs that grows as it reads."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r"\s?\w+|\s?[^\w\s]|\s", text)]


class Speaker(torch.nn.Module):
    """Says nine tenths of what it was taught to say after a text, and spreads the rest."""

    def __init__(self, taught: dict[tuple[int, ...], int]) -> None:
        super().__init__()
        self.taught = taught

    def forward(self, ids_BT: Tensor, taps: object = None) -> Output:
        logits_BTV = torch.zeros(*ids_BT.shape, V)
        for row, ids in zip(logits_BTV, ids_BT.tolist(), strict=True):
            for t in range(len(ids)):
                said = self.taught.get(tuple(ids[: t + 1]))
                if said is not None:
                    row[t, said] = np.log(9 * (V - 1))
        return Output(logits_BTV)


def ask(model: torch.nn.Module, encode: object, n_ids: int = V) -> Observation:
    return Observation(model, torch.zeros(1, 300, dtype=torch.long), {}, torch.zeros(1, 300, n_ids), encode=encode)


def taught(words: Words, refuses: bool) -> Speaker:
    """One who names the right place when told, and when not told refuses or names the first place of the story."""
    lessons: dict[tuple[int, ...], int] = {}
    for told, untold in encoded(words, V, 300):
        for prompt, knows in ((told, True), (untold, False)):
            stem = range(prompt.asked, len(prompt.ids))
            lessons |= {prompt.ids[:i]: prompt.ids[i] for i in stem}
            lessons[prompt.ids] = prompt.place if knows else prompt.places[0]
            if refuses and not knows:
                lessons[prompt.ids[: prompt.asked]] = prompt.refusal
    return Speaker(lessons)


def test_pairs_ask_about_somebody_who_was_told_and_somebody_who_was_not() -> None:
    for pair in pairs()[:20]:
        story, question = pair.told.rsplit("\n", 1)
        assert pair.untold.rsplit("\n", 1)[0] == story
        assert question.replace(pair.knower, pair.stranger) == pair.untold.rsplit("\n", 1)[1]
        assert pair.place in pair.places and f" {pair.place}" in story and pair.stranger in story
        assert not re.search(rf"(told|{pair.stranger} (knew|thought|saw))", story)


def test_one_who_knows_what_it_was_not_told_does_not_confabulate() -> None:
    words = Words()
    values = measure(ask(taught(words, refuses=True), words)).values
    assert values["confidence when told"] == pytest.approx(0.9**3, abs=0.01)
    assert values["confabulation"] < 0.01
    assert values["does not know when not told"] == pytest.approx(0.9, abs=0.01)
    assert values["right when told"] == 1
    assert values["confidence that telling adds"] > 5 * 0.1 and values["confidence that telling adds low"] > 0.5


def test_one_who_always_answers_confabulates() -> None:
    words = Words()
    values = measure(ask(taught(words, refuses=False), words)).values
    assert values["confabulation"] == pytest.approx(0.9**3, abs=0.01)
    assert values["confidence that telling adds"] == pytest.approx(0, abs=1e-6)
    assert values["does not know when not told"] < 0.01


def test_an_untrained_model_says_nothing_with_confidence() -> None:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=V, d_model=32, n_blocks=1, n_heads=2, max_seq_len=300).train()
    values = measure(ask(model, Words())).values
    assert values["confabulation"] < 0.01 and abs(values["confidence that telling adds"]) < 0.01
    assert model.training


def test_no_tokenizer_or_a_foreign_one_is_nothing_to_measure() -> None:
    words = Words()
    model = Speaker({})
    assert measure(ask(model, None)) is None
    assert measure(ask(model, lambda text: [i + V for i in words(text)])) is None
    assert measure(ask(model, lambda text: [7] * len(text))) is None  # answers that all begin alike
    assert measure(ask(model, lambda text: [])) is None


def test_bytes_are_a_vocabulary_where_prompts_fit() -> None:
    encode = ByteTokenizer().encode
    assert len(encoded(encode, 257, 600)) >= FEWEST_PAIRS
    assert len(encoded(encode, 257, 64)) == 0
