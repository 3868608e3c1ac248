"""Append-only files: lines are whole, damage stays where it is, a full disk takes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.runs import lines
from homunculi.runs.lines import LineWriter, find_last, read_lines, repair, tail

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, *objects: dict) -> None:
    with LineWriter(path) as writer:
        for value in objects:
            writer.append(value)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)


def test_objects_come_back_in_order(tmp_path: Path) -> None:
    objects = [{"step": i, "text": "ä\n\u2028\x00\x85", "nested": {"a": [1, None, True]}} for i in range(5)]
    write(tmp_path / "a.jsonl", *objects)
    assert read_lines(tmp_path / "a.jsonl") == objects
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 5


def test_each_object_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    real = os.write
    monkeypatch.setattr(lines.os, "write", lambda handle, data: writes.append(bytes(data)) or real(handle, data))
    write(tmp_path / "a.jsonl", {"a": "x" * 300_000}, {"b": 2})
    assert [data[-1:] for data in writes] == [b"\n", b"\n"]
    assert [json.loads(data) for data in writes] == [{"a": "x" * 300_000}, {"b": 2}]


def test_what_is_not_finite_becomes_null_and_is_named(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl", {"step": 3, "train/loss": float("nan"), "lr": 0.1, "deep": {"norms": [1.0, float("inf")]}}
    )
    assert read_lines(tmp_path / "a.jsonl") == [
        {
            "step": 3,
            "train/loss": None,
            "lr": 0.1,
            "deep": {"norms": [1.0, None]},
            "nonfinite": ["deep.norms.1", "train/loss"],
        }
    ]
    json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)


def test_numbers_of_other_libraries_and_paths_are_written_plainly(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "p": Path("a/b")})
    assert read_lines(tmp_path / "a.jsonl") == [{"i": 3, "f": 0.5, "b": True, "p": "a/b"}]


def test_a_value_without_json_form_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model\.layer: a set has no JSON form"):
        write(tmp_path / "a.jsonl", {"model": {"layer": {1}}})
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_torn_last_line_is_skipped_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"lo')
    assert read_lines(path, on_damage=pytest.fail) == [{"step": 1}]


def test_a_whole_last_line_counts_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}')
    assert read_lines(path, on_damage=pytest.fail) == [{"step": 1}, {"step": 2}]
    assert repair(path)
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n'
    assert not (tmp_path / "a.jsonl.torn").exists()


@pytest.mark.parametrize("damage", [b'{"step":2,', b"\x00\x00\x00", b"[1,2]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_middle_line_is_named_and_left_out(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n' + damage + b'\n\n{"step":3}\n')
    seen: list[str] = []
    assert read_lines(path, seen.append) == [{"step": 1}, {"step": 3}]
    assert seen == ["a.jsonl: line 2 is damaged and was left out"]


def test_by_default_damage_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken\n")
    assert read_lines(tmp_path / "a.jsonl") == []
    assert caplog.messages == ["a.jsonl: line 1 is damaged and was left out"]


def test_repair_keeps_the_torn_line_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"lo')
    assert repair(path)
    assert path.read_bytes() == b'{"step":1}\n'
    assert (tmp_path / "a.jsonl.torn").read_bytes() == b'{"step":2,"lo\n'
    assert not repair(path)
    assert not repair(tmp_path / "absent.jsonl")


def test_repair_finds_a_torn_line_longer_than_its_reading_block(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    torn = b'{"text":"' + b"x" * 200_000
    path.write_bytes(b'{"step":1}\n' + torn)
    assert repair(path)
    assert path.read_bytes() == b'{"step":1}\n'
    path.write_bytes(torn)
    assert repair(path)
    assert path.read_bytes() == b""


def test_a_writer_does_not_glue_its_line_to_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n{"st')
    write(path, {"step": 2})
    assert read_lines(path, on_damage=pytest.fail) == [{"step": 1}, {"step": 2}]


@settings(derandomize=True, deadline=None)
@given(cut=st.integers(min_value=0, max_value=80))
def test_a_file_cut_anywhere_gives_the_lines_before_the_cut(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    objects = [{"step": i, "x": "é" * i} for i in range(3)]
    write(path, *objects)
    whole = path.read_bytes()[:cut]
    path.write_bytes(whole)
    kept = read_lines(path, on_damage=pytest.fail)
    assert kept == objects[: len(kept)]
    assert len(kept) >= whole.count(b"\n")
    write(path, {"step": 9})
    assert read_lines(path, on_damage=pytest.fail) == [*kept, {"step": 9}]


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {"step": 1})
    real = os.write
    with LineWriter(path) as writer:
        monkeypatch.setattr(lines.os, "write", lambda handle, data: real(handle, data[:5]))
        with pytest.raises(OSError, match="taken back"):
            writer.append({"step": 2})
        monkeypatch.undo()
        assert path.read_bytes() == b'{"step":1}\n'
        writer.append({"step": 3})
    assert read_lines(path, on_damage=pytest.fail) == [{"step": 1}, {"step": 3}]


def test_a_short_write_is_not_taken_back_from_under_another_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    real = os.write

    def short_and_overtaken(handle: int, data: bytes) -> int:
        written = real(handle, data[:5])
        real(handle, b'\n{"other":1}\n')
        return written

    with LineWriter(path) as writer:
        monkeypatch.setattr(lines.os, "write", short_and_overtaken)
        with pytest.raises(OSError):
            writer.append({"step": 2})
    assert read_lines(path, lambda message: None) == [{"other": 1}]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import resource, sys\n"
        "from homunculi.runs.lines import LineWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "writer = LineWriter(sys.argv[1])\n"
        "try:\n"
        "    for i in range(1000): writer.append({'step': i, 'text': 'x' * 40})\n"
        "except OSError as error: print(i)\n"
    )
    done = python(code, str(path))
    count = int(done.stdout)
    assert 5 < count < 1000
    assert [line["step"] for line in read_lines(path, on_damage=pytest.fail)] == list(range(count))
    assert path.read_bytes().endswith(b"\n")


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "a.jsonl")
    writer.sync()
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append({"a": 1})


def test_tail_gives_each_line_once_and_waits_for_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert tail(path, 0) == ([], 0)
    path.write_bytes(b'{"step":1}\nbroken\n{"st')
    found, offset = tail(path, 0)
    assert found == [{"step": 1}]
    assert tail(path, offset) == ([], offset)
    with path.open("ab") as file:
        file.write(b'ep":2}\n')
    found, offset = tail(path, offset)
    assert found == [{"step": 2}]
    assert offset == path.stat().st_size


@pytest.mark.parametrize("offset", [10_000, -1])
def test_tail_starts_again_where_the_file_became_shorter(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n')
    assert tail(path, offset) == ([{"step": 1}], 11)


def test_find_last_reads_back_as_far_as_it_must(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    early = [{"step": 0, "val/loss": 3.0}, {"step": 1, "val/loss": 2.5}]
    write(path, *early, *({"step": i, "pad": "x" * 200, "text": '"val/loss"'} for i in range(2, 8000)))
    with path.open("ab") as file:
        file.write(b'{"step":8000,"val/loss":1')
    assert path.stat().st_size > 1 << 20
    assert find_last(path, "val/loss") == early[1]
    assert (find_last(path, "step") or {})["step"] == 7999
    assert find_last(path, "absent") is None
    assert find_last(tmp_path / "absent.jsonl", "step") is None


def test_readers_follow_a_writer_and_see_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import sys\n"
        "from homunculi.runs.lines import LineWriter\n"
        "writer = LineWriter(sys.argv[1])\n"
        "for i in range(3000): writer.append({'step': i, 'text': 'x' * (i % 700)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    followed: list[int] = []
    offset = 0
    while len(followed) < 3000:
        ended = process.poll() is not None
        found, offset = tail(path, offset)
        followed += [line["step"] for line in found]
        read = [line["step"] for line in read_lines(path, on_damage=pytest.fail)]
        assert read == list(range(len(read)))
        if ended and not found:
            break
    assert process.wait() == 0
    assert followed == list(range(3000))


def test_a_process_killed_while_writing_loses_no_printed_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import sys\n"
        "from homunculi.runs.lines import LineWriter\n"
        "writer = LineWriter(sys.argv[1])\n"
        "for i in range(10**9):\n"
        "    writer.append({'step': i, 'text': 'x' * 500})\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    printed += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    kept = [line["step"] for line in read_lines(path, on_damage=pytest.fail)]
    assert kept[: len(printed)] == printed
    assert kept == list(range(len(kept)))
