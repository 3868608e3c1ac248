"""Tokens on disk are exactly the corpus, are found again, survive crashes and races, and travel."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf

from homunculi.errors import InputError
from homunculi.text.batches import Batches
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus
from homunculi.text.shards import TokenisedText, prepare
from homunculi.text.streams import INDEX, JoinedTokens, TokenStream, join_streams, open_shards
from homunculi.text.tokenizers import ByteTokenizer, byte_lengths, tokens_of_span, train_bpe
from homunculi.text.writing import SplitWriter

ROOT = Path(__file__).resolve().parents[2]
BYTES = TextConfig(tokenizer="bytes")
WORDS = ["fox", "hen", "hat", "naïve", "rain", "你好", "🙂", "12", "red", "<|endoftext|>"]


def story(number: int) -> str:
    return f"Story {number}: " + " ".join(WORDS[(number * k) % len(WORDS)] for k in range(1, 30)) + "."


def write_corpus(path: Path, n_documents: int = 200, first: int = 0) -> str:
    lines = [json.dumps({"text": story(i)}) for i in range(first, first + n_documents)]
    path.write_text("\n".join(lines))
    return str(path)


def gpt2_config(folder: Path) -> TextConfig:
    model = json.loads(train_bpe([story(i) for i in range(50)], 320).to_json())["model"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    return TextConfig(tokenizer=f"gpt2:{folder}")


def documents_of(text: TokenisedText, stream: TokenStream) -> list[str]:
    return [text.tokenizer.decode(stream.document(k).tolist()) for k in range(stream.n_documents)]


def train_of(text: TokenisedText) -> TokenStream:
    assert isinstance(text.train, TokenStream)
    return text.train


@pytest.mark.parametrize("kind", ["bytes", "bpe", "gpt2"])
def test_tokens_stand_for_exactly_the_bytes_of_the_documents(kind: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    configs = {"bytes": BYTES, "bpe": TextConfig(vocab_size=300)}
    config = configs[kind] if kind in configs else gpt2_config(tmp_path / "gpt2")
    text = prepare(corpus, config, cache=tmp_path)
    lengths = byte_lengths(text.tokenizer)
    for split, stream in (("train", train_of(text)), ("val", text.val)):
        documents = list(open_corpus(corpus, config).documents(split))  # type: ignore[arg-type]
        assert stream.n_bytes == sum(len(document.encode()) for document in documents)
        assert int(lengths[stream.tokens[:]].sum()) == stream.n_bytes
        assert documents_of(text, stream) == documents
        assert int((stream.tokens[:] == text.tokenizer.eot_id).sum()) == stream.n_documents == len(documents)
        assert stream.n_tokens == len(stream.tokens)
    assert train_of(text).n_documents + text.val.n_documents == 200


def test_tokens_are_narrow_maps_of_the_files(tmp_path: Path) -> None:
    text = prepare(write_corpus(tmp_path / "a.jsonl"), BYTES, cache=tmp_path)
    tokens = train_of(text).tokens
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.dtype("<u2")
    assert (text.folder / "train-00000.bin").stat().st_size == 2 * train_of(text).n_tokens


def test_facts_are_json_with_counts_of_each_split(tmp_path: Path) -> None:
    text = prepare(write_corpus(tmp_path / "a.jsonl"), BYTES, cache=tmp_path)
    facts = json.loads(json.dumps(text.facts))
    for name in ("n_documents", "n_bytes", "n_tokens"):
        assert facts[name] == {"train": getattr(train_of(text), name), "val": getattr(text.val, name)}
    assert facts["fingerprint"] == open_corpus(str(tmp_path / "a.jsonl"), BYTES).fingerprint
    assert facts["tokenizer"]["kind"] == "bytes"
    assert re.fullmatch("[0-9a-f]{64}", facts["data_hash"])


def test_what_is_prepared_is_found_again_and_what_differs_is_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    said: list[str] = []
    config = TextConfig(vocab_size=300)
    first = prepare(corpus, config, cache=tmp_path, progress=said.append)
    assert any("training a tokenizer of 300" in line for line in said)
    said.clear()
    again = prepare(corpus, config, cache=tmp_path, progress=said.append)
    assert said == []
    assert again.folder == first.folder and again.facts == first.facts
    assert prepare(corpus, TextConfig(vocab_size=310), cache=tmp_path).folder != first.folder
    assert prepare(corpus, TextConfig(vocab_size=300, val_frac=0.2), cache=tmp_path).folder != first.folder
    write_corpus(tmp_path / "a.jsonl", 201)
    changed = prepare(corpus, config, cache=tmp_path)
    assert changed.folder != first.folder and changed.facts["data_hash"] != first.facts["data_hash"]


def test_the_cache_is_the_persons_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    text = prepare(write_corpus(tmp_path / "a.jsonl"), BYTES)
    assert text.folder.parent == tmp_path / "xdg" / "homunculi" / "text"


def test_two_preparations_of_the_same_text_are_the_same_bytes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    for config in (BYTES, TextConfig(vocab_size=300)):
        one, two = (prepare(corpus, config, cache=tmp_path / name) for name in ("one", "two"))
        assert one.facts["data_hash"] == two.facts["data_hash"]
        assert sorted(path.name for path in one.folder.iterdir()) == sorted(path.name for path in two.folder.iterdir())
        for path in one.folder.iterdir():
            assert path.read_bytes() == (two.folder / path.name).read_bytes()


def test_files_roll_over_and_read_as_one(tmp_path: Path) -> None:
    documents = [story(i) for i in range(40)]
    writer = SplitWriter(tmp_path, "train", ByteTokenizer(), lambda message: None, shard_bytes=1000)
    entry = writer.write(((text, None) for text in documents), has_events=False)
    sizes = [(tmp_path / file["name"]).stat().st_size for file in entry["tokens"]]
    assert len(sizes) > 5 and set(sizes[:-1]) == {1000} and 0 < sizes[-1] <= 1000
    index = {
        "format": "homunculi-tokens",
        "version": 1,
        "dtype": "uint16",
        "fingerprint": "",
        "tokenizer": {"sha256": ""},
        "splits": {"train": entry},
    }
    (tmp_path / INDEX).write_text(json.dumps(index))
    ByteTokenizer().save(tmp_path)
    shards = open_shards(tmp_path)
    stream = shards.stream("train")
    whole = [i for text in documents for i in [*text.encode(), 256]]
    assert stream.n_tokens == len(whole)
    assert np.asarray(stream.tokens).tolist() == whole
    for start in range(0, len(whole), 97):
        assert stream.tokens[start : start + 700].tolist() == whole[start : start + 700]
    assert [shards.tokenizer.decode(stream.document(k).tolist()) for k in range(40)] == documents
    shards.verify()


def test_large_vocabularies_are_stored_wider(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = (1 << 16) + 1
        eot_id = 1 << 16

    entry = SplitWriter(tmp_path, "train", Wide(), lambda message: None).write([("ab", None)], has_events=False)
    assert np.fromfile(tmp_path / entry["tokens"][0]["name"], dtype="<u4").tolist() == [97, 98, 65536]


def test_a_long_document_is_tokenised_in_pieces_and_stays_one_document(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} about a fox.\n" for i in range(12_000)]
    (tmp_path / "a.txt").write_text("".join(paragraphs))
    text = prepare(str(tmp_path / "a.txt"), TextConfig(vocab_size=300, val_frac=0.1), cache=tmp_path)
    stream = train_of(text)
    assert stream.n_documents == 1 and stream.n_bytes > 4 * (1 << 16)
    whole = next(open_corpus(str(tmp_path / "a.txt"), TextConfig(val_frac=0.1)).documents("train"))
    assert stream.tokens[:-1].tolist() == text.tokenizer.encode(whole)


def test_a_world_keeps_its_event_log_line_by_document(tmp_path: Path) -> None:
    text = prepare("stories?n_documents=30&n_val_documents=10", TextConfig(vocab_size=300), cache=tmp_path)
    shards = text.components[0].shards
    for split, stream, n in (("train", train_of(text), 30), ("val", text.val, 10)):
        records = list(shards.events(split))
        assert len(records) == n == stream.n_documents
        assert [record["text"] for record in records] == documents_of(text, stream)
    record = next(iter(shards.events("train")))
    event = record["events"][1]
    first, last = tokens_of_span(text.tokenizer, record["text"], event["start"], event["end"])
    covered = text.tokenizer.decode(train_of(text).document(0)[first:last].tolist())
    assert record["text"][event["start"] : event["end"]] in covered
    shards.verify()


def test_shards_travel_to_another_place_and_are_used_as_they_are(tmp_path: Path) -> None:
    first = prepare(write_corpus(tmp_path / "a.jsonl"), TextConfig(vocab_size=300), cache=tmp_path)
    shutil.move(first.folder, tmp_path / "elsewhere")
    text = prepare(str(tmp_path / "elsewhere"), TextConfig(vocab_size=999), cache=tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    assert text.tokenizer.vocab_size == 300
    for name in ("fingerprint", "data_hash", "n_tokens", "n_bytes", "tokenizer"):
        assert text.facts[name] == first.facts[name]
    corpus = open_corpus(str(tmp_path / "elsewhere"), BYTES)
    assert corpus.has_val
    for split in ("train", "val"):
        original = open_corpus(str(tmp_path / "a.jsonl"), BYTES).documents(split)  # type: ignore[arg-type]
        assert list(corpus.documents(split)) == list(original)  # type: ignore[arg-type]


def test_a_mixture_has_one_tokenizer_and_other_weights_cost_nothing(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "a.jsonl"), write_corpus(tmp_path / "b.jsonl", 100, first=500)
    config = TextConfig(vocab_size=300)
    text = prepare(f"{one}@0.7,{two}@0.3", config, cache=tmp_path)
    assert isinstance(text.train, tuple)
    assert [(s.name, s.weight) for s in text.train] == [(one, pytest.approx(0.7)), (two, pytest.approx(0.3))]
    hashes = {component.shards.tokenizer_hash for component in text.components}
    assert len(hashes) == 1
    for name in ("n_tokens", "n_bytes", "n_documents"):
        assert text.facts[name]["train"] == sum(getattr(s.stream, name) for s in text.train)
    said: list[str] = []
    other = prepare(f"{one}@0.5,{two}@0.5", config, cache=tmp_path, progress=said.append)
    assert said == []
    assert other.facts["data_hash"] != text.facts["data_hash"]
    assert Batches(text, seq_len=16, n_sequences=4, seed=0).at(3).shape == (4, 17)


def test_the_validation_text_of_a_mixture_is_that_of_its_corpora_in_order(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "a.jsonl"), write_corpus(tmp_path / "b.jsonl", 100, first=500)
    text = prepare(f"{one},{two}", BYTES, cache=tmp_path)
    expected = [d for path in (one, two) for d in open_corpus(path, BYTES).documents("val")]
    assert documents_of(text, text.val) == expected
    assert text.val.n_bytes == sum(len(document.encode()) for document in expected)
    assert isinstance(text.val.tokens, JoinedTokens)


def test_joined_streams_read_as_one() -> None:
    def stream(low: int, high: int) -> TokenStream:
        return TokenStream(np.arange(low, high, dtype=np.uint16), high - low, np.array([0, 2]))

    joined = join_streams([stream(0, 5), stream(5, 12), stream(12, 13)])
    assert np.asarray(joined.tokens).tolist() == list(range(13))
    assert joined.document_starts.tolist() == [0, 2, 5, 7, 12, 14]
    for start in range(14):
        for stop in range(14):
            assert joined.tokens[start:stop].tolist() == list(range(13))[start:stop]
    assert joined.tokens[-3:].tolist() == [10, 11, 12]
    assert joined.tokens[::4].tolist() == [0, 4, 8, 12]


def test_another_corpus_validates_and_then_nothing_is_held_out(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "a.jsonl"), write_corpus(tmp_path / "b.jsonl", 30, first=500)
    text = prepare(one, TextConfig(tokenizer="bytes", val_corpus=two), cache=tmp_path)
    assert train_of(text).n_documents == 200
    assert documents_of(text, text.val) == [story(i) for i in range(500, 530)]
    assert text.facts["n_documents"] == {"train": 200, "val": 30}


def test_the_training_corpus_cannot_be_named_to_validate(tmp_path: Path) -> None:
    one, copy = write_corpus(tmp_path / "a.jsonl"), write_corpus(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match=r"text\.val_corpus .* is what is trained on"):
        prepare(one, TextConfig(tokenizer="bytes", val_corpus=copy), cache=tmp_path)


def test_empty_splits_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.txt").write_text("once")
    (tmp_path / "c" / "valid.txt").write_text("\n")
    with pytest.raises(InputError, match=r"validation split of corpus .*/c is empty: add documents to it or name text"):
        prepare(str(tmp_path / "c"), BYTES, cache=tmp_path)
    (tmp_path / "c" / "train.txt").rename(tmp_path / "c" / "test.txt")
    with pytest.raises(InputError, match="has no training documents"):
        prepare(str(tmp_path / "c"), BYTES, cache=tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"split of corpus .* is empty"):
        prepare(str(tmp_path / "a.txt"), BYTES, cache=tmp_path)
    assert not [path for path in (tmp_path / "text").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("normalizer", "words"), [(hf.normalizers.Lowercase(), "A Fox"), (hf.normalizers.NFC(), "cafe\u0301")]
)
def test_a_tokenizer_that_changes_the_text_is_refused(
    normalizer: hf.normalizers.Normalizer, words: str, tmp_path: Path
) -> None:
    inner = hf.Tokenizer.from_str(train_bpe([story(i) for i in range(50)], 300).to_json())
    inner.normalizer = normalizer
    inner.save(str(tmp_path / "tokenizer.json"))
    config = TextConfig(tokenizer=str(tmp_path))
    plain = prepare(_text(tmp_path / "a.txt", "all small"), config, cache=tmp_path)
    assert plain.facts["n_bytes"]["train"] > 0  # what the normalizer leaves alone is fine
    with pytest.raises(InputError, match="document 1 of train does not come back byte for byte"):
        prepare(_text(tmp_path / "b.txt", words), config, cache=tmp_path)


def _text(path: Path, words: str) -> str:
    path.write_text("\n\n".join([words] * 200))
    return str(path)


def test_shards_of_different_tokenizers_do_not_mix(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    one = prepare(corpus, BYTES, cache=tmp_path).folder
    two = prepare(corpus, TextConfig(vocab_size=300), cache=tmp_path).folder
    with pytest.raises(InputError, match="tokenised differently"):
        prepare(f"{one},{two}", BYTES, cache=tmp_path)


def test_shards_and_text_mix_under_the_tokenizer_of_the_shards(tmp_path: Path) -> None:
    folder = prepare(write_corpus(tmp_path / "a.jsonl"), TextConfig(vocab_size=300), cache=tmp_path).folder
    text = prepare(f"{folder},{write_corpus(tmp_path / 'b.jsonl', 100, 500)}", BYTES, cache=tmp_path)
    assert text.tokenizer.vocab_size == 300
    assert len({component.shards.tokenizer_hash for component in text.components}) == 1


def damaged(text: TokenisedText) -> str:
    with pytest.raises(InputError) as caught:
        found = prepare(str(text.folder), BYTES)
        _ = found.streams, found.val, found.tokenizer
        found.verify()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_shards_are_one_line_with_the_fix(tmp_path: Path) -> None:
    text = prepare(write_corpus(tmp_path / "a.jsonl"), BYTES, cache=tmp_path)
    shard = text.folder / "train-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    assert f"{shard} is damaged (it has {len(whole) - 2} bytes, index.json says {len(whole)}): delete" in damaged(text)
    shard.write_bytes(whole[:-1] + b"\x07")
    assert "its content changed" in damaged(text)
    shard.unlink()
    assert "it is missing" in damaged(text)
    shard.write_bytes(whole)
    prepare(str(text.folder), BYTES).verify()


def test_a_damaged_index_is_one_line_and_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    text = prepare(write_corpus(tmp_path / "a.jsonl"), BYTES, cache=tmp_path)
    path = text.folder / INDEX
    whole = path.read_text()
    for broken in (
        whole[: len(whole) // 2],
        whole.replace('"fingerprint"', '"thumbprint"'),
        whole.replace("train-00000.bin", "../train.bin"),
        whole.replace('"uint16"', '"object"'),
        whole.replace('"splits": {', '"splits": {"x": 3, '),
    ):
        path.write_text(broken)
        assert f"{path} is damaged: delete" in damaged(text)
    path.write_text(whole.replace('"version": 1', '"version": 2', 1))
    assert "has version 2, this program reads 1" in damaged(text)


def test_a_cache_folder_without_its_index_is_not_taken_for_whole(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    (prepare(corpus, BYTES, cache=tmp_path).folder / INDEX).unlink()
    with pytest.raises(InputError, match=r"index\.json is missing: delete"):
        prepare(corpus, BYTES, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be written .* XDG_CACHE_HOME"):
        prepare(write_corpus(tmp_path / "a.jsonl"), BYTES, cache=tmp_path)


def test_threads_that_prepare_at_once_all_get_the_whole_text(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    found: list[TokenisedText] = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare(corpus, TextConfig(vocab_size=300), cache=tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({text.facts["data_hash"] for text in found}) == 1
    found[0].verify()
    assert not [path for path in (tmp_path / "text").iterdir() if path.name.startswith(".")]


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl")
    code = (
        "import sys, time\nfrom pathlib import Path\nimport homunculi.text.shards as shards\n"
        "write = shards.write_atomic\n"
        "def stop(path, content):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "shards.write_atomic = stop\n"
        "config = shards.TextConfig(tokenizer='bytes')\n"
        "shards.prepare(sys.argv[1], config, cache=Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, corpus, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = (tmp_path / "text").iterdir()
    assert left.name.startswith(".unfinished-") and (left / "train-00000.bin").stat().st_size > 0
    yesterday = time.time() - 100_000
    os.utime(left, (yesterday, yesterday))
    text = prepare(corpus, BYTES, cache=tmp_path)
    text.verify()
    assert not left.exists()
