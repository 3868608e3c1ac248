"""Real corpora by their names: the splits that they state, exact bytes, and batches out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from homunculi.text.batches import Batches, validation_windows
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus
from homunculi.text.shards import prepare
from homunculi.text.streams import TokenStream
from homunculi.text.tokenizers import byte_lengths


@pytest.fixture(autouse=True)
def corpora(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMUNCULI_DATA", str(data_folder))


def test_tinystories_are_read_story_by_story_and_come_back(tmp_path: Path) -> None:
    text = prepare("tinystories", TextConfig(tokenizer="bytes"), cache=tmp_path)
    assert text.facts["n_documents"] == {"train": 9839, "val": 534}
    assert isinstance(text.train, TokenStream)
    lengths = byte_lengths(text.tokenizer)
    for stream in (text.train, text.val):
        assert int(lengths[stream.tokens[:]].sum()) == stream.n_bytes
    first = text.tokenizer.decode(text.train.document(0).tolist())
    assert first.startswith("Lily and Ben") and "<|" not in first
    batches = Batches(text, seq_len=128, n_sequences=8, seed=0)
    assert not np.array_equal(batches.at(0), batches.at(1))
    n_targets = sum(len(window) - 1 for window in validation_windows(text.val, 128))
    assert n_targets == text.val.n_tokens - 1


def test_a_small_vocabulary_on_tinystories_is_exact_and_compresses(tmp_path: Path) -> None:
    text = prepare("tinystories/valid.txt", TextConfig(vocab_size=512), cache=tmp_path)
    assert isinstance(text.train, TokenStream)
    assert text.tokenizer.vocab_size == 512
    lengths = byte_lengths(text.tokenizer)
    assert int(lengths[text.train.tokens[:]].sum()) == text.train.n_bytes
    assert 2.0 < text.train.n_bytes / text.train.n_tokens < 4.5


def test_the_splits_of_the_childrens_books_are_those_that_its_records_state() -> None:
    corpus = open_corpus("childrens_books", TextConfig())
    assert corpus.has_val
    val = list(corpus.documents("val"))
    assert len(val) == 5
    assert sum(1 for _ in corpus.documents("train")) == 49


def test_wikitext_has_text_to_validate_on_and_none_to_train_on() -> None:
    corpus = open_corpus("wikitext2", TextConfig())
    assert corpus.has_val
    assert len("".join(corpus.documents("val"))) > 10**6
    assert not list(corpus.documents("train"))
