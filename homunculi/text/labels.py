"""Tokens as a person reads them: spaces shown, characters that act on a screen made inert, broken UTF-8 as bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from homunculi.text.tokenizers import Tokenizer

END = "⟨end⟩"
_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_ACTING = re.compile("[\x00-\x1f\x7f-\xa0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]")


def shown(text: str) -> str:
    """Text with a mark for each space, line end and tab, and other characters without a shape as ⟨code⟩."""
    for plain, mark in _SHOWN.items():
        text = text.replace(plain, mark)
    return _ACTING.sub(lambda match: f"⟨{ord(match[0]):02x}⟩", text)


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself; a part of a character as its bytes, ⟨e2 80⟩."""
    data = tokenizer.token_bytes(token)
    if not data:
        return END if token == tokenizer.eot_id else f"⟨{token}⟩"
    try:
        return shown(data.decode("utf-8"))
    except UnicodeDecodeError:
        text = data.decode("utf-8", errors="ignore")
        return shown(text) if len(text) > 2 else f"⟨{data.hex(' ')}⟩"


def labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """`label` of each."""
    return [label(tokenizer, token) for token in ids]
