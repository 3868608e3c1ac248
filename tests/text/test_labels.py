"""Token labels show spaces, and nothing in them acts on a screen."""

from __future__ import annotations

import pytest

from homunculi.text.labels import END, label, labels, shown
from homunculi.text.tokenizers import ByteTokenizer, train_bpe


def test_tokens_of_a_bpe_read_as_text_with_their_spaces() -> None:
    tokenizer = train_bpe(["the cat sat on the mat\n"] * 50, 300)
    found = labels(tokenizer, [*tokenizer.encode("the cat\n"), tokenizer.eot_id])
    assert "".join(found) == f"the␣cat⏎{END}"


def test_parts_of_a_character_are_shown_as_bytes() -> None:
    assert labels(ByteTokenizer(), list("é".encode())) == ["⟨c3⟩", "⟨a9⟩"]
    assert label(ByteTokenizer(), 999) == "⟨999⟩"


@pytest.mark.parametrize("acting", ["\x00", "\x1b", "\r", "\u202e", "\u200b", "\ufeff", "\u2066", "\x85", "\u2028"])
def test_characters_that_act_are_inert(acting: str) -> None:
    assert shown(f"a{acting}b") == f"a⟨{ord(acting):02x}⟩b"


def test_other_characters_stay() -> None:
    assert shown("Привет, 你好 🙂 <b>\t") == "Привет,␣你好␣🙂␣<b>⇥"
