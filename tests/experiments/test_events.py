"""A planted response at a word is found, at its lag; where none is, something is found one time in twenty."""

from __future__ import annotations

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.experiments.events import Event, around, average_around, find_events, words_of
from homunculi.experiments.orders import compare_orders, distances, read_pair, swap_words
from homunculi.text.tokenizers import ByteTokenizer

NAMES = ("planted", "other", "third")
N_TOKENS = 60


def noise(drawn: np.random.Generator, n_signals: int = 3) -> np.ndarray:
    """A signal that remembers: nearby tokens are alike, as a model's are."""
    steps = drawn.standard_normal((n_signals, N_TOKENS))
    for t in range(1, N_TOKENS):
        steps[:, t] += 0.7 * steps[:, t - 1]
    return steps


def texts(seed: int, n: int = 20, planted: float = 0.0) -> tuple[list[np.ndarray], list[list[Event]]]:
    drawn = np.random.default_rng(seed)
    signals, events = [], []
    for _ in range(n):
        values, at = noise(drawn), int(drawn.integers(15, 30))
        values[0, at + 2] += planted
        values[1, 40:] = np.nan
        signals.append(values)
        events.append([Event(at, (at + 12, at + 15))])
    return signals, events


def test_a_planted_response_is_found_in_its_signal_at_its_lag() -> None:
    found = average_around(NAMES, *texts(0, planted=3.0), n_permutations=500)
    assert found.p[0] <= 0.01 and found.peak[0] == 2 and min(found.p[1:]) > 0.05
    place = found.lags.index(2)
    assert found.difference[0, place] == pytest.approx(3, abs=1.2)
    assert found.difference[0, place] > found.high[0, place] > 0 > found.low[0, place]
    assert found.event.shape == (3, 17) and found.n_texts == found.n_events == 20
    assert found.to_json()["p"][0] == found.p[0]


def test_where_nothing_is_planted_little_is_found() -> None:
    hits = [min(average_around(NAMES, *texts(seed), n_permutations=200).p) <= 0.05 for seed in range(1, 161)]
    assert sum(hits) <= 14  # of 160, 8 are expected; 15 or more come by chance one time in a hundred


def test_p_is_a_share_of_flips_so_never_zero_and_the_same_again() -> None:
    a, b = (average_around(NAMES, *texts(3, planted=50.0), n_permutations=100) for _ in range(2))
    assert a.p[0] == pytest.approx(1 / 101) and a.to_json() == b.to_json()


def test_few_texts_are_refused() -> None:
    with pytest.raises(InputError, match="only 5 texts have one of these words and a control"):
        average_around(NAMES, *texts(0, n=5))


def test_words_begin_where_their_token_does() -> None:
    text = "Größe, but don't Stop"
    data = text.encode()
    found = words_of(ByteTokenizer(), text)
    assert [word for word, _ in found] == ["größe", "but", "don't", "stop"]
    for word, place in found:
        assert data[place - 1 :].decode().lower().startswith(word)  # the start is token 0


def test_controls_are_as_frequent_in_the_same_part_and_outside_every_window() -> None:
    frequent = [("x", 1 + 40 * i) for i in range(8)]
    words = [("then", 20), ("but", 50), ("near", 55), ("then", 200), ("near", 281)]
    (events,) = find_events([sorted([*words, *frequent], key=lambda one: one[1])], ["But"])
    assert events == [Event(50, (20,))]  # x is too frequent, 55 in the window, 200 and 281 in another part
    (closer,) = find_events([words], ["but"], window=4)
    assert closer == [Event(50, (20, 55))]
    assert find_events([[("but", 5), ("but", 12), ("and", 9)]], ["but"]) == [[]]


def test_a_reader_that_answers_a_word_is_found_through_its_texts() -> None:
    drawn = np.random.default_rng(0)
    vocabulary = ["but", *("and", "then", "now", "here", "soon")]

    def read(text: str) -> tuple[list[str], np.ndarray]:
        values = np.random.default_rng(len(text)).standard_normal((2, 1 + len(text.encode())))
        for word, place in words_of(ByteTokenizer(), text):
            values[0, place] += 8 * (word == "but")
        return ["answers", "does not"], values

    documents = [" ".join(drawn.choice(vocabulary, 30)) for _ in range(30)]
    found = around(read, ByteTokenizer(), documents, ["but"])
    assert found.p[0] < 0.01 and found.peak[0] == 0 and found.p[1] > 0.05
    with pytest.raises(InputError, match="give at least one word"):
        around(read, ByteTokenizer(), documents, [])


def test_content_words_change_places() -> None:
    assert swap_words("the dog chased the cat.") == "the cat chased the dog."
    assert read_pair("a b | b a | c").paraphrase == "c"
    assert read_pair("Anna gave Tom a map").swapped == "map gave Tom a Anna"
    for wrong in ("the of", "dog", "a | b | c | d", ""):
        with pytest.raises(InputError, match="swap: "):
            read_pair(wrong)


def test_phasic_distance_ignores_a_shift_and_tonic_distance_ignores_movement() -> None:
    course = np.sin(np.linspace(0, 6, 40))[None]
    one = np.ones(1)
    assert distances(course, course + 2, one)[0] == pytest.approx(0) and distances(course, course + 2, one)[1] == 2
    phasic, tonic = distances(course, course[:, ::-1] * 1.0, one)
    assert phasic > 0.5 and tonic == pytest.approx(0, abs=1e-12)
    assert distances(course, np.repeat(course, 2, axis=1), one)[0] < 0.1  # twice as many tokens, the same course
    holed = course.copy()
    holed[0, 5:9] = np.nan
    assert distances(course, holed, one)[0] < 0.1


def test_a_reader_of_roles_tells_swapped_sentences_apart_and_a_reader_of_words_does_not() -> None:
    def read(text: str) -> tuple[list[str], np.ndarray]:
        words = text.replace(".", "").split()
        roles = [float(word == "dog") - float(word == "cat") for word in words]
        bag = [sum(len(word) for word in words) + 0.0] * len(words)
        return ["roles", "words"], np.array([roles, bag])

    found = compare_orders(read, [read_pair("dog chased big cat | cat chased big dog | dog ran after cat")])
    mean = found["mean"]["phasic"]
    assert mean["swapped"][0] > 2 * mean["paraphrase"][0]
    assert mean["swapped"][1] == 0 and found["pairs"][0]["above"][0] > 0.5
    assert found["names"] == ["roles", "words"] and len(mean["same_words"]) == 2
