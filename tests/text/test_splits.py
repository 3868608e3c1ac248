"""Documents are split by names, by what they state, or held out, and never land on both sides."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homunculi.text.splits import cut_tail, is_held_out, label_files, survey


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.txt", "valid.txt"], ["train", "val"]),
        (["train-00000.parquet", "train-00001.parquet", "validation-00000.parquet"], ["train", "train", "val"]),
        (["Stories-V2-train.txt", "Stories-V2-valid.txt"], ["train", "val"]),
        (["train/a.txt", "test/a.txt"], ["train", "test"]),
        (["train.jsonl.xz", "val.jsonl.xz", "test.jsonl.xz"], ["train", "val", "test"]),
        (["a.txt", "b.txt", "val.txt"], ["train", "train", "val"]),
        (["trains.txt", "valley.txt", "testament.txt"], [None, None, None]),
        (["train-1.txt", "train-2.txt"], [None, None]),
        (["book.txt", "the-train-to-rome.txt", "valid.txt"], ["train", "train", "val"]),
        (["valid.txt.xz", "test.txt.xz"], ["val", "test"]),
    ],
)
def test_names_of_files_tell_their_split(names: list[str], expected: list[str | None]) -> None:
    paths = [PurePath(name) for name in names]
    assert [label_files(paths)[path] for path in paths] == expected


def test_files_without_a_split_are_left_out_beside_files_called_train() -> None:
    assert set(label_files([PurePath(name) for name in ("train.txt", "test.txt", "notes.txt")])) == {
        PurePath("train.txt"),
        PurePath("test.txt"),
    }


def test_about_the_fraction_is_held_out_whatever_else_is_there() -> None:
    texts = [f"document {i}" for i in range(5000)]
    held = {text for text in texts if is_held_out(text, 0.1)}
    assert 430 <= len(held) <= 570
    assert held == {text for text in reversed(texts) if is_held_out(text, 0.1)}
    assert held <= {text for text in texts if is_held_out(text, 0.2)}


@given(st.text(min_size=1, max_size=400), st.floats(0.01, 0.99))
def test_a_tail_is_cut_without_losing_anything_but_line_breaks(text: str, val_frac: float) -> None:
    head, tail = cut_tail(text, val_frac)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert set(text[len(head) : len(text) - len(tail)]) <= {"\r", "\n"}


def test_a_tail_is_cut_at_a_paragraph_and_of_about_the_right_size() -> None:
    text = "\n\n".join("word " * 20 + "end." for _ in range(200))
    head, tail = cut_tail(text, 0.1)
    assert head.endswith("end.")
    assert tail.startswith("word")
    assert 0.09 < len(tail) / len(text) < 0.11


def test_without_paragraphs_a_line_and_then_a_space_is_the_boundary() -> None:
    assert cut_tail("a b\n" * 100, 0.1)[0].endswith("a b")
    head, tail = cut_tail("word " * 100, 0.1)
    assert head.endswith(" ") and tail.startswith("word")
    assert cut_tail("x" * 100, 0.1) == ("x" * 90, "x" * 10)


def test_a_survey_tells_when_whole_documents_cannot_be_held_out() -> None:
    many = [(None, f"document {i}") for i in range(1000)]
    assert not survey(many, 0.02).holds_out_tails
    assert survey(many[:1], 0.02).holds_out_tails
    assert survey(many[:20], 0.02).holds_out_tails
    assert survey([(None, "same")] * 1000, 0.02).holds_out_tails


def test_test_documents_validate_only_where_nothing_else_does() -> None:
    both = survey([("train", "a"), ("val", "b"), ("test", "c")], 0.1)
    assert both.val_labels == {"val"}
    assert both.train_labels == {"train", None}
    assert survey([("train", "a"), ("test", "c")], 0.1).val_labels == {"test"}
    assert not survey([("train", "a"), (None, "b")], 0.1).has_val
