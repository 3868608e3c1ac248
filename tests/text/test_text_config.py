"""Every field of TextConfig refuses what it cannot use, in one line that names it."""

from __future__ import annotations

import pytest

from homunculi.errors import InputError
from homunculi.text.config import TextConfig


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tokenizer": ""}, "text.tokenizer"),
        ({"tokenizer": "gpt2:"}, "text.tokenizer"),
        ({"vocab_size": 256}, "text.vocab_size is 256"),
        ({"val_frac": 0.0}, "text.val_frac"),
        ({"val_frac": 1.0}, "text.val_frac"),
        ({"val_frac": float("nan")}, "text.val_frac"),
        ({"encoding": "latin-7½"}, "text.encoding"),
        ({"encoding": "rot13"}, "text.encoding"),
        ({"field": ""}, "text.field"),
        ({"separator": ""}, "text.separator"),
        ({"separator": "a\nb"}, "text.separator"),
    ],
)
def test_bad_value_is_one_line_that_names_the_field(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        TextConfig(**values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_defaults_and_the_smallest_vocabulary_are_accepted() -> None:
    assert TextConfig().tokenizer == "bpe"
    assert TextConfig(vocab_size=257).vocab_size == 257


def test_vocab_size_matters_only_to_a_tokenizer_that_is_trained() -> None:
    assert TextConfig(tokenizer="bytes", vocab_size=256).vocab_size == 256
