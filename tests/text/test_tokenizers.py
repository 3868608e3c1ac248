"""Every tokenizer gives back every byte of every text, is saved and loaded as itself, and refuses foreign files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.tokenizers import (
    ALPHABET,
    ByteTokenizer,
    Tokenizer,
    byte_lengths,
    cut_pieces,
    load_tokenizer,
    make_tokenizer,
    sample_evenly,
    tokens_of_span,
    train_bpe,
)

TRAINING = [
    "Once upon a time there was a little fox who had 12 red hats. The fox didn't like rain.",
    "The little hen said, “Where is my hat?” and the fox laughed.\n\nThen they shared the 12 hats.",
    "<|endoftext|> is not a word that foxes say.",
] * 20
AWKWARD = [
    "",
    " ",
    "\n\n \n",
    "The fox.",
    "  two  spaces\tand a tab\r\n",
    "naïve café – 你好, мир 🙂🏽 e\u0301 \ufeff \u200d",
    "a<|endoftext|>b<|endoftext|>",
    "\x00\x01\x7f\x80ÿ",
    "don't I'll we've",
]


def bpe() -> Tokenizer:
    return train_bpe(TRAINING, 400)


def gpt2(folder: Path) -> Tokenizer:
    """The files of a trained BPE in GPT-2's own form."""
    model = json.loads(bpe().to_json())["model"]
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}\n")
    return make_tokenizer(TextConfig(tokenizer=f"gpt2:{folder}"), iter(()))


@pytest.fixture(scope="module", params=["bytes", "bpe", "gpt2", "file"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bytes":
        return make_tokenizer(TextConfig(tokenizer="bytes"), iter(()))
    if request.param == "gpt2":
        return gpt2(folder)
    if request.param == "bpe":
        return make_tokenizer(TextConfig(vocab_size=400), iter(TRAINING))
    bpe().save(folder)
    return make_tokenizer(TextConfig(tokenizer=str(folder / "tokenizer.json")), iter(()))


@pytest.mark.parametrize("text", AWKWARD)
def test_tokens_stand_for_exactly_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode("utf-8")
    assert byte_lengths(tokenizer)[ids].sum() == len(text.encode("utf-8")) if ids else text == ""
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot_id not in ids


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    for found in (ByteTokenizer(), SHARED):
        ids = found.encode(text)
        assert found.decode(ids) == text
        assert sum(len(found.token_bytes(i)) for i in ids) == len(text.encode("utf-8"))


SHARED = bpe()


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    one_by_one = [tokenizer.encode(text) for text in AWKWARD]
    assert tokenizer.encode_batch(AWKWARD) == one_by_one
    assert [array.tolist() for array in tokenizer.encode_arrays(AWKWARD)] == one_by_one


def test_end_of_text_and_unknown_ids_stand_for_nothing(tokenizer: Tokenizer) -> None:
    lengths = byte_lengths(tokenizer)
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.eot_id] == 0
    assert (np.delete(lengths, tokenizer.eot_id) > 0).all()
    assert tokenizer.decode([tokenizer.eot_id, *tokenizer.encode("hat"), tokenizer.vocab_size + 9, -1]) == "hat"


def test_broken_utf8_is_decoded_with_the_replacement_character() -> None:
    assert ByteTokenizer().decode([104, 195]) == "h\ufffd"


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.eot_id) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot_id)
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.encode_batch(AWKWARD) == tokenizer.encode_batch(AWKWARD)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_saved_file_is_one_of_the_package_tokenizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    inner = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in AWKWARD:
        if "<|endoftext|>" not in text:
            assert inner.encode(text).ids == tokenizer.encode(text)
            assert inner.decode(inner.encode(text).ids) == text
    assert inner.token_to_id("<|endoftext|>") == tokenizer.eot_id


def test_bytes_are_their_own_ids() -> None:
    assert ByteTokenizer().encode("é\n") == [195, 169, 10]
    assert ByteTokenizer().vocab_size == 257


def test_the_alphabet_is_that_of_byte_level_vocabularies() -> None:
    assert sorted(ALPHABET) == sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(ALPHABET.values()) == list(range(256))
    assert ALPHABET["Ġ"] == 0x20
    assert ALPHABET["Ċ"] == 0x0A


def test_bpe_splits_as_gpt_2_does_and_adds_no_space() -> None:
    found = SHARED
    words = [[found.token_bytes(i) for i in found.encode(text)] for text in ("fox's 12", "fox")]
    assert b"".join(words[1])[:1] == b"f"
    assert all(not (b" " in token[1:] or (token[-1:].isdigit() and token[:1].isalpha())) for token in words[0])


def test_training_is_the_same_in_every_process() -> None:
    code = (
        "from tests.text.test_tokenizers import TRAINING, train_bpe\nimport hashlib\n"
        "print(hashlib.sha256(train_bpe(TRAINING, 400).to_json().encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
        for _ in range(2)
    }
    assert found == {hashlib.sha256(SHARED.to_json().encode()).hexdigest() + "\n"}


def test_too_little_text_gives_a_smaller_vocabulary() -> None:
    assert 257 <= train_bpe(["ab"], 1000).vocab_size < 300
    assert train_bpe(TRAINING, 257).vocab_size == 257


def test_a_sample_is_spread_evenly_and_stays_within_its_size() -> None:
    documents = [f"{i:06d}" for i in range(10_000)]
    sample = sample_evenly(iter(documents), 6_000)
    places = np.array([int(text) for text in sample])
    assert 3_000 < 6 * len(sample) <= 6_000
    assert places[0] == 0 and places[-1] > 9_900
    assert len(set(np.diff(places).tolist())) == 1
    assert sample_evenly(iter(documents), 10**6) == documents


def test_pieces_are_the_text_and_give_the_tokens_of_the_whole() -> None:
    text = "".join(f"Line {i} of the fox's tale, 12 hats.\n" + "\n" * (i % 3) for i in range(3000))
    pieces = list(cut_pieces(text, 5000))
    assert "".join(pieces) == text
    assert len(pieces) > 10 and max(map(len, pieces)) <= 5000
    assert [i for ids in SHARED.encode_batch(pieces) for i in ids] == SHARED.encode(text)


def test_a_text_without_lines_is_cut_all_the_same() -> None:
    assert list(cut_pieces("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(cut_pieces("", 10)) == [""]


def test_a_span_of_characters_is_covered_by_its_tokens(tokenizer: Tokenizer) -> None:
    text = "The naïve fox 🙂 said: “Where is my hat?”"
    ids = tokenizer.encode(text)
    for start in range(len(text)):
        for stop in (start + 1, min(start + 7, len(text))):
            first, last = tokens_of_span(tokenizer, text, start, stop)
            before = b"".join(tokenizer.token_bytes(i) for i in ids[:first])
            covered = b"".join(tokenizer.token_bytes(i) for i in ids[first:last])
            low, high = len(text[:start].encode()), len(text[:stop].encode())
            assert len(before) <= low < high <= len(before) + len(covered)
            assert len(before) + len(tokenizer.token_bytes(ids[first])) > low


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        make_tokenizer(TextConfig(tokenizer=str(path)), iter(()))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "tokenizer.json")
    assert "No such file" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"vocab": {}}')
    assert "damaged or no tokenizer.json" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        hf.models.WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"),
        hf.models.BPE(vocab={"a": 0, "b": 1}, merges=[]),
    ],
)
def test_a_tokenizer_that_does_not_stand_for_bytes_is_refused(model: hf.models.Model, tmp_path: Path) -> None:
    inner = hf.Tokenizer(model)
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel()
    inner.save(str(tmp_path / "tokenizer.json"))
    assert "no byte-level BPE" in refusal(tmp_path)


def test_a_foreign_byte_level_tokenizer_gives_whole_texts_without_its_own_extras(tmp_path: Path) -> None:
    inner = hf.Tokenizer.from_str(SHARED.to_json().replace("<|endoftext|>", "</s>"))
    inner.add_special_tokens(["<s>"])
    inner.add_tokens(["foxes and hens"])
    inner.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, inner.token_to_id(name)) for name in ("<s>", "</s>")]
    )
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    text = "<s>The foxes and hens had hats.</s>"
    ids = found.encode(text)
    assert found.eot_id == inner.token_to_id("</s>")
    assert inner.token_to_id("foxes and hens") in ids
    assert found.decode(ids) == text
    assert byte_lengths(found)[ids].sum() == len(text)


def test_a_tokenizer_without_an_end_of_text_is_given_one(tmp_path: Path) -> None:
    plan = json.loads(SHARED.to_json())
    plan["added_tokens"] = []
    del plan["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(plan))
    found = load_tokenizer(tmp_path)
    assert found.eot_id == found.vocab_size - 1
    assert found.decode(found.encode("fox hat")) == "fox hat"


def test_the_files_of_gpt_2_are_found_or_named(tmp_path: Path) -> None:
    found = gpt2(tmp_path)
    assert found.encode("The fox") == SHARED.encode("The fox")
    (tmp_path / "encoder.json").rename(tmp_path / "vocab.json")
    with pytest.raises(InputError, match=r"neither vocab\.json and merges\.txt nor encoder\.json"):
        make_tokenizer(TextConfig(tokenizer=f"gpt2:{tmp_path}"), iter(()))
    (tmp_path / "vocab.bpe").rename(tmp_path / "merges.txt")
    assert make_tokenizer(TextConfig(tokenizer=f"gpt2:{tmp_path}"), iter(())).to_json() == found.to_json()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match="do not belong together"):
        make_tokenizer(TextConfig(tokenizer=f"gpt2:{tmp_path}"), iter(()))


def test_half_a_surrogate_pair_is_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\ud800")
