"""Documents come out of every format as they went in, and every fault of a file is one line that says where."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.reading import read_documents

STORIES = ["Once upon a time.\n\nThe end.", "Señor Fox – said: 你好 🙂", "  indented\r\nand a line"]
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def content_of(ending: str, folder: Path) -> bytes:
    if ending == ".txt":
        return "\n<|endoftext|>\n".join(STORIES).encode()
    if ending == ".jsonl":
        return "\n".join(json.dumps({"text": text, "n": 1}) for text in STORIES).encode()
    path = folder / "table"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": STORIES}), path)
    return path.read_bytes()


def read(path: Path, **values: str) -> list[tuple[str | None, str]]:
    return list(read_documents(path, TextConfig(**values)))  # type: ignore[arg-type]


def refusal(path: Path, **values: str) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **values)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("packing", list(PACK))
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_documents_survive_every_format_and_compression(ending: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}{packing}"
    path.write_bytes(PACK[packing](content_of(ending, tmp_path)))
    assert read(path) == [(None, text) for text in STORIES]


def test_a_separator_line_with_a_carriage_return_separates(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n<|endoftext|>\r\ntwo\r\n")
    assert [text for _, text in read(tmp_path / "a.txt")] == ["one", "two"]


def test_another_separator_is_used_and_ours_is_then_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\n***\ntwo\n")
    assert [text for _, text in read(tmp_path / "a.txt", separator="***")] == ["one\n<|endoftext|>", "two"]


def test_a_separator_inside_a_line_does_not_separate(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one <|endoftext|>\ntwo")
    assert [text for _, text in read(tmp_path / "a.txt")] == ["one <|endoftext|>\ntwo"]


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>\n \n\n<|endoftext|>\none\n<|endoftext|>\n")
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": " \\n"}\n{"text": "one"}\n')
    assert [text for _, text in read(tmp_path / "a.txt")] == ["one"]
    assert [text for _, text in read(tmp_path / "a.jsonl")] == ["one"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert [text for _, text in read(tmp_path / "a.txt")] == ["one"]


def test_latin_1_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    assert [text for _, text in read(tmp_path / "a.txt", encoding="latin-1")] == ["café"]


@pytest.mark.parametrize("packing", list(PACK))
def test_broken_utf8_names_the_byte_and_the_fix(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACK[packing](b"x" * 3_000_000 + "é".encode() + b"\xe9t\xe9"))
    message = refusal(path)
    assert "at byte 3000002" in message
    assert "text.encoding=latin-1" in message


def test_utf8_cut_inside_a_character_at_the_end_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xc3")
    assert "at byte 3" in refusal(tmp_path / "a.txt")


def test_a_character_over_the_edge_of_a_block_is_whole_and_faults_after_it_are_placed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * ((1 << 20) - 1) + "é".encode() + b"ab\xff")
    assert f"at byte {(1 << 20) + 3}" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{text: 1}", "is not JSON"),
        ('{"text": "a"', "is not JSON"),
        ("[1, 2]", "no object"),
        ("[" * 100_000, "is not JSON"),
        ('{"body": "a", "title": "b"}', "no field 'text' (it has body, title): set text.field"),
        ('{"text": ["a"]}', "holds list, not text"),
        ('{"text": null}', "holds NoneType, not text"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"text": "a", "split": "holdout"}', "split 'holdout' is unknown"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_with_its_number(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    message = refusal(path)
    assert f"{path}:3" in message
    assert says in message


def test_the_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"story": "one"}\n')
    assert read(tmp_path / "a.jsonl", field="story") == [(None, "one")]


def test_stated_splits_are_understood_under_their_usual_names(tmp_path: Path) -> None:
    names = ["train", "valid", "Validation", "val", "dev", "test", 3, None]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "a", "split": n}) + "\n" for n in names))
    assert [split for split, _ in read(tmp_path / "a.jsonl")] == [
        "train", "val", "val", "val", "val", "test", None, None
    ]  # fmt: skip


def test_parquet_states_splits_and_names_bad_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "split": ["valid", "train"]}), path)
    found = read_documents(path, TextConfig())
    assert next(found) == ("val", "a")
    with pytest.raises(InputError, match=r"row 2.*NoneType"):
        next(found)
    assert "no column 'story' (it has text, split): set text.field" in refusal(path, field="story")


@pytest.mark.parametrize("packing", [".gz", ".xz"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_a_cut_off_archive_says_so(ending: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}{packing}"
    path.write_bytes(PACK[packing](content_of(ending, tmp_path))[:-20])
    assert "damaged or cut off" in refusal(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"plain words" * 20)
    assert "damaged" in refusal(tmp_path / name)


def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "a.txt")
    assert "unknown ending: use .txt" in refusal(tmp_path / "a.docx")


@contextmanager
def without_privileges() -> Iterator[None]:
    """Run as nobody where the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("secret")
    path.chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # nobody may not walk the folders above
    with without_privileges():
        message = refusal(Path("a.txt"))
    assert "Permission denied" in message
    assert "permissions" in message
