"""A spec finds its corpus, a corpus gives each document to one split, and a wrong spec is one line with the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus, parse_mixture

CONFIG = TextConfig()


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOMUNCULI_DATA", raising=False)


def refusal(spec: str, config: TextConfig = CONFIG) -> str:
    with pytest.raises(InputError) as caught:
        list(open_corpus(spec, config).documents("train"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_records(path: Path, records: list[tuple[str, str | None]]) -> None:
    lines = [json.dumps({"text": text} | ({"split": split} if split else {})) for text, split in records]
    path.write_text("\n".join(lines))


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("c.txt", "b/a.txt", "a.jsonl", ".hidden.txt", ".git/x.txt", "README.md"):
        text = '{"text": "a.jsonl"}' if name.endswith("jsonl") else name
        (tmp_path / name).write_text(text)
    assert list(open_corpus(str(tmp_path), CONFIG).documents("all")) == ["a.jsonl", "b/a.txt", "c.txt"]


def test_a_path_inside_the_data_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text("once")
    monkeypatch.setenv("HOMUNCULI_DATA", str(tmp_path))
    assert list(open_corpus("tales", CONFIG).documents("all")) == ["once"]
    assert list(open_corpus("tales/a.txt", CONFIG).documents("all")) == ["once"]


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("once")
    (tmp_path / "one" / "b.txt").write_text("twice")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = open_corpus(str(tmp_path / "one"), CONFIG).fingerprint
    assert open_corpus(str(tmp_path / "two"), CONFIG).fingerprint == first
    (tmp_path / "two" / "b.txt").write_text("thrice")
    assert open_corpus(str(tmp_path / "two"), CONFIG).fingerprint != first
    (tmp_path / "x.txt").write_text("same")
    (tmp_path / "y.txt").write_text("same")
    assert (
        open_corpus(str(tmp_path / "x.txt"), CONFIG).fingerprint
        == open_corpus(str(tmp_path / "y.txt"), CONFIG).fingerprint
    )


def test_files_called_train_and_valid_are_the_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n<|endoftext|>\nb")
    (tmp_path / "valid.txt").write_text("c")
    corpus = open_corpus(str(tmp_path), CONFIG)
    assert corpus.has_val
    assert list(corpus.documents("train")) == ["a", "b"]
    assert list(corpus.documents("val")) == ["c"]


def test_records_that_state_a_split_are_the_splits_and_test_records_are_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [("a", "train"), ("b", None), ("c", "valid"), ("d", "test")])
    corpus = open_corpus(str(path), CONFIG)
    assert corpus.has_val
    assert list(corpus.documents("train")) == ["a", "b"]
    assert list(corpus.documents("val")) == ["c"]
    assert list(corpus.documents("all")) == ["a", "b", "c", "d"]


def test_many_documents_are_held_out_whole_and_each_is_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [(f"story {i % 700}", None) for i in range(1000)])
    corpus = open_corpus(str(path), TextConfig(val_frac=0.1))
    train, val = list(corpus.documents("train")), list(corpus.documents("val"))
    assert not corpus.has_val
    assert len(train) + len(val) == 1000
    assert 40 < len(val) < 180
    assert not set(train) & set(val)


def test_one_document_holds_out_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Paragraph {i}." for i in range(300)) + "\n")
    corpus = open_corpus(str(path), TextConfig(val_frac=0.1))
    (train,), (val,) = corpus.documents("train"), corpus.documents("val")
    assert train + "\n\n" + val == path.read_text().rstrip("\n")
    assert val.startswith("Paragraph")
    assert 0.08 < len(val) / len(train + val) < 0.12


def test_few_documents_hold_out_the_tail_of_each(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i}." for i in range(200)))
    corpus = open_corpus(str(tmp_path), TextConfig(val_frac=0.1))
    assert [text[0] for text in corpus.documents("train")] == ["a", "b", "c"]
    assert [text[0] for text in corpus.documents("val")] == ["a", "b", "c"]


def test_wrong_specs_are_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "none").mkdir()
    assert "HOMUNCULI_DATA names no folder" in refusal(str(tmp_path / "gone"))
    assert "unknown ending" in refusal(str(tmp_path / "a.docx"))
    assert "holds no text" in refusal(str(tmp_path / "empty.txt"))
    assert "no file that can be read" in refusal(str(tmp_path / "none"))
    assert "corpus is empty" in refusal("")
    (tmp_path / "none" / "a.csv").write_text("x")
    assert "(it has .csv): use .txt" in refusal(str(tmp_path / "none"))


def test_a_missing_corpus_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMUNCULI_DATA", str(tmp_path))
    message = refusal("tinystoreis")
    assert "'tinystoreis' does not exist here" in message
    assert f"HOMUNCULI_DATA={tmp_path}" in message
    assert "stories" in message


def test_a_mixture_is_split_and_its_weights_sum_to_one() -> None:
    shares = parse_mixture("one@3, two@1")
    assert [(share.spec, share.weight) for share in shares] == [("one", 0.75), ("two", 0.25)]
    assert [share.weight for share in parse_mixture("one,two")] == [0.5, 0.5]
    assert [share.spec for share in parse_mixture("stories?n_documents=5&seed=3@0.7,b@0.3")] == [
        "stories?n_documents=5&seed=3",
        "b",
    ]
    assert [(share.spec, share.weight) for share in parse_mixture("one")] == [("one", 1.0)]


def test_paths_may_hold_commas_and_at_signs(tmp_path: Path) -> None:
    whole, part = tmp_path / "a,b@2.txt", tmp_path / "c@0.5.txt"
    whole.write_text("x")
    part.write_text("x")
    assert [share.spec for share in parse_mixture(str(whole))] == [str(whole)]
    shares = parse_mixture(f"{part}@3,other@1")
    assert [(share.spec, share.weight) for share in shares] == [(str(part), 0.75), ("other", 0.25)]
    assert [(share.spec, share.weight) for share in parse_mixture(f"{part},other")] == [
        (str(part), 0.5),
        ("other", 0.5),
    ]


@pytest.mark.parametrize("spec", ["a@x,b@0.3", "a@,b", "a@0,b", "a@-1,b@2", "a@nan,b", "a@inf,b", "@1,b"])
def test_a_weight_that_is_no_positive_number_is_named(spec: str) -> None:
    with pytest.raises(InputError, match="no positive number: write a mixture as A@"):
        parse_mixture(spec)


def test_an_empty_part_and_a_corpus_named_twice_are_refused() -> None:
    with pytest.raises(InputError, match="empty part"):
        parse_mixture("a@1,,b")
    with pytest.raises(InputError, match="'a' occurs twice"):
        parse_mixture("a@1,b,a@2")
