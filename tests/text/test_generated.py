"""The generated world is a corpus: named in a spec, fingerprinted with its code, logged beside its text."""

from __future__ import annotations

import json

import pytest

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus
from homunculi.text.generated import open_world

CONFIG = TextConfig()


def test_the_fields_of_a_spec_are_typed_and_reach_the_world() -> None:
    corpus = open_world("stories?n_documents=5&seed=3&n_val_documents=2&belief_frac=0.5")
    assert (corpus.config.n_documents, corpus.config.seed, corpus.config.belief_frac) == (5, 3, 0.5)
    assert len(list(corpus.documents("train"))) == 5
    assert len(list(corpus.documents("val"))) == 2
    assert len(list(corpus.documents("all"))) == 7


def test_several_words_of_a_field_are_joined_by_plus() -> None:
    assert open_world("stories?plots=told+moved").config.plots == ("told", "moved")


def test_a_world_without_fields_has_its_defaults() -> None:
    corpus = open_corpus("stories", CONFIG)
    assert corpus.has_val and corpus.has_events
    assert corpus.fingerprint == open_corpus("stories?seed=0", CONFIG).fingerprint


def test_another_seed_is_another_corpus() -> None:
    one, other = (open_corpus(f"stories?n_documents=3&seed={seed}", CONFIG) for seed in (1, 2))
    assert one.fingerprint != other.fingerprint
    assert list(one.documents("train")) != list(other.documents("train"))


def test_the_event_log_is_one_line_of_json_with_the_text_that_it_tells_of() -> None:
    for text, events in open_corpus("stories?n_documents=4", CONFIG).entries("train"):
        assert events is not None and "\n" not in events
        record = json.loads(events)
        assert record["text"] == text
        assert record["events"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("stories?n_docs=5", "no field 'n_docs': did you mean n_documents"),
        ("stories?wings=5", "no field 'wings': it has n_documents"),
        ("stories?n_documents=many", "n_documents is 'many', which is no int"),
        ("stories?n_documents=0", "n_documents"),
        ("stories?belief_frac=2", "belief_frac"),
    ],
)
def test_a_wrong_field_is_one_line(spec: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        open_corpus(spec, CONFIG)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
