"""Corpora of the package `datasets`: a local folder in the hub's layout, its splits, its fields, its faults."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus
from homunculi.text.shards import prepare
from tests.conftest import SKIPS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason=SKIPS["datasets"])
CONFIG = TextConfig(tokenizer="bytes")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_rows(path: Path, texts: list[str], field: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({field: text, "n": 1}) for text in texts))


def test_a_folder_in_the_layout_of_the_hub_is_split_by_its_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", ["one", " ", "twö"])
    write_rows(tmp_path / "set" / "validation.jsonl", ["three"])
    write_rows(tmp_path / "set" / "test.jsonl", ["four"])
    corpus = open_corpus(f"hf:{tmp_path / 'set'}", CONFIG)
    assert corpus.has_val
    assert list(corpus.documents("train")) == ["one", "twö"]
    assert list(corpus.documents("val")) == ["three"]
    text = prepare(f"hf:{tmp_path / 'set'}", CONFIG, cache=tmp_path)
    assert text.facts["n_bytes"] == {"train": 7, "val": 5}


def test_without_a_validation_split_documents_are_held_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "data.jsonl", [f"story {i}" for i in range(500)])
    corpus = open_corpus(f"hf:{tmp_path / 'set'}", TextConfig(val_frac=0.1))
    train, val = list(corpus.documents("train")), list(corpus.documents("val"))
    assert not corpus.has_val
    assert len(train) + len(val) == 500 and 25 < len(val) < 80


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    for name, last in (("one", "b"), ("two", "b"), ("three", "c")):
        write_rows(tmp_path / name / "train.jsonl", ["a", last])
    one, two, three = (open_corpus(f"hf:{tmp_path / name}", CONFIG).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


def test_the_field_is_named_in_the_configuration_or_in_the_refusal(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", ["one"], field="story")
    with pytest.raises(InputError, match=r"no field 'text' \(it has story, n\): set text.field"):
        open_corpus(f"hf:{tmp_path / 'set'}", CONFIG)
    corpus = open_corpus(f"hf:{tmp_path / 'set'}", TextConfig(field="story"))
    assert list(corpus.documents("all")) == ["one"]
    with pytest.raises(InputError, match="holds int, not text"):
        list(open_corpus(f"hf:{tmp_path / 'set'}", TextConfig(field="n")).documents("all"))


def test_a_data_set_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), "nobody/nothing", "nobody/nothing:plain"):
        with pytest.raises(InputError, match=r"cannot be loaded .*: check the name") as caught:
            open_corpus(f"hf:{name}", CONFIG)
        assert "\n" not in str(caught.value)
