"""The desk's other side: started late, kept, one question at a time, and never left behind."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator

import pytest

from homunculi.web.desk_client import DeskClient, DeskFailed
from tests.page.conftest import FAKE_DESK

SAMPLE = {"do": "sample", "run": "r", "text": "One", "tokens": 8, "seed": 0, "changes": [], "temperature": 0.8}


@pytest.fixture
def desk() -> Iterator[DeskClient]:
    made = DeskClient(FAKE_DESK)
    yield made
    made.close()


def test_it_is_started_by_the_first_question_and_kept(desk: DeskClient) -> None:
    assert desk._process is None
    first = json.loads(desk.ask(SAMPLE))
    process = desk._process
    second = json.loads(desk.ask(SAMPLE))
    assert first["result"] == second["result"] and desk._process is process


def test_questions_from_several_threads_get_their_own_answers(desk: DeskClient) -> None:
    expected = [json.loads(desk.ask(SAMPLE | {"seed": seed}))["result"]["text"] for seed in range(4)]
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        answers[seed] = json.loads(desk.ask(SAMPLE | {"seed": seed}))["result"]["text"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(expected)) == 4 and [answers[seed] for seed in range(4)] == expected


def test_an_answer_that_is_given_up_does_not_reach_the_next_question(desk: DeskClient) -> None:
    given_up = threading.Event()
    lines = desk.stream(SAMPLE | {"tokens": 12}, given_up)
    assert "piece" in json.loads(next(lines))
    given_up.set()
    assert list(lines) == []
    assert len(json.loads(desk.ask(SAMPLE | {"tokens": 1}))["result"]["text"].split()) == 1
    assert list(desk.stream(SAMPLE, given_up)) == [], "what was given up before its turn is not asked"


def test_a_desk_that_ends_says_why_and_the_next_question_starts_another(desk: DeskClient) -> None:
    with pytest.raises(DeskFailed, match="no memory is left"):
        desk.ask(SAMPLE | {"do": "scan", "text": "die"})
    assert b'"result"' in desk.ask(SAMPLE)


def test_a_desk_that_says_nothing_is_ended() -> None:
    desk = DeskClient([sys.executable, "-c", "import time; time.sleep(60)"], answer_s=0.2)
    with pytest.raises(DeskFailed, match="did not answer within"):
        desk.ask(SAMPLE)
    assert desk._process is None


def test_a_desk_that_cannot_be_started_is_one_line() -> None:
    with pytest.raises(DeskFailed, match="cannot be started"):
        DeskClient(["/no/such/program"]).ask(SAMPLE)


def test_lines_that_are_no_answer_are_passed_over() -> None:
    code = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    n = json.loads(line)['id']\n"
        "    print('loading', flush=True); print('[1]', flush=True)\n"
        "    print(json.dumps({'id': n - 1, 'result': 'old'}), flush=True)\n"
        "    print(json.dumps({'result': 'new', 'id': n}), flush=True)\n"
    )
    desk = DeskClient([sys.executable, "-c", code])
    assert json.loads(desk.ask(SAMPLE))["result"] == "new"
    desk.close()
    with pytest.raises(DeskFailed, match="being closed"):
        desk.ask(SAMPLE)


def test_an_answer_that_is_given_up_is_stopped() -> None:
    code = (
        "import sys, json, threading, queue\n"
        "asked = queue.Queue()\n"
        "def read():\n"
        "    for line in sys.stdin: asked.put(json.loads(line))\n"
        "threading.Thread(target=read, daemon=True).start()\n"
        "def say(**line): print(json.dumps(line), flush=True)\n"
        "while True:\n"
        "    one = asked.get()\n"
        "    say(id=one['id'], piece='a')\n"
        "    if one.get('tokens') == 1: say(id=one['id'], result={}); continue\n"
        "    stop = asked.get()\n"
        "    assert stop['do'] == 'stop' and stop['of'] == one['id']\n"
        "    say(id=one['id'], result={})\n"
    )
    desk = DeskClient([sys.executable, "-c", code], answer_s=20)
    given_up = threading.Event()
    lines = desk.stream(SAMPLE, given_up)
    next(lines)
    process = desk._process
    given_up.set()
    assert list(lines) == []
    assert b"result" in desk.ask(SAMPLE | {"tokens": 1}) and desk._process is process is not None
    desk.close()
    assert process.poll() is not None


def test_an_answer_of_which_nothing_has_come_is_given_up_and_stopped(desk: DeskClient) -> None:
    desk.ask(SAMPLE)
    process, given_up = desk._process, threading.Event()
    timer = threading.Timer(0.2, given_up.set)
    timer.start()
    assert list(desk.stream(SAMPLE | {"do": "scan", "text": "endless"}, given_up)) == []
    assert b"result" in desk.ask(SAMPLE) and desk._process is process
