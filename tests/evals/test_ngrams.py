"""Count models: proper distributions, the published formulas counted again by hand, sources whose entropy is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ngram_baselines import measure
from homunculi.errors import InputError
from homunculi.evals.loss import held_out_loss
from homunculi.evals.ngrams import (
    Bigram,
    KneserNey,
    Trigram,
    UnigramCache,
    WittenBell,
    baselines,
    count_ngrams,
    distinct_rows,
    evaluate,
    highest_order,
)
from homunculi.text.batches import Batches, validation_windows
from homunculi.text.config import TextConfig
from homunculi.text.shards import TokenisedText, prepare
from homunculi.text.tokenizers import byte_lengths

MODELS: list[Callable[[], Any]] = [
    UnigramCache,
    Bigram,
    Trigram,
    lambda: WittenBell(4),
    lambda: KneserNey(2),
    KneserNey,
    lambda: KneserNey(5),
]


def zipf(n: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens of a chain in which each has a few favourite successors; the last token never occurs."""
    random = np.random.default_rng(seed)
    jumps = np.minimum(random.zipf(1.6, n), vocab_size - 1) - 1
    return (np.cumsum(jumps) % (vocab_size - 1)).astype(np.uint16)


def distribution(model: Any, context: list[int], vocab_size: int) -> np.ndarray:
    """p of every token after a context that opens its window."""
    ids = np.array([[*context, token] for token in range(vocab_size)])
    return np.exp(model.log_probs(ids)[:, -1])


@pytest.mark.parametrize("make", MODELS)
def test_probabilities_sum_to_one_after_seen_and_unseen_contexts(make: Callable[[], Any]) -> None:
    tokens = zipf(400, 12)
    model = make().fit(tokens, 12)
    contexts = [tokens[at : at + length].tolist() for at in (0, 50, 300) for length in (1, 2, 3, 6)]
    contexts += [[11], [11, 11], [3, 11], [11, 3], [11, 3, 5, 7, 2], [int(tokens[-1])], tokens[-4:].tolist()]
    for context in contexts:
        p = distribution(model, context, 12)
        assert p.sum() == pytest.approx(1.0, abs=1e-12), context
        assert (p > 0).all(), context


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(2, 5), st.data())
def test_probabilities_sum_to_one_whatever_was_counted(vocab_size: int, order: int, data: st.DataObject) -> None:
    ids = st.integers(0, vocab_size - 1)
    tokens = np.array(data.draw(st.lists(ids, min_size=8, max_size=60)))
    context = data.draw(st.lists(ids, min_size=1, max_size=6))
    for model in (KneserNey(order), WittenBell(order), UnigramCache()):
        p = distribution(model.fit(tokens, vocab_size), context, vocab_size)
        assert p.sum() == pytest.approx(1.0, abs=1e-12) and (p > 0).all()


def counted(text: list[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


class PlainKneserNey:
    """Modified Kneser–Ney written down from its definition, with dictionaries."""

    def __init__(self, text: list[int], order: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.raw = {n: counted(text, n) for n in range(1, order + 1)}
        self.seen_after: dict[int, dict[tuple[int, ...], int]] = {
            n: Counter(gram[1:] for gram in self.raw[n + 1]) for n in range(1, order)
        }

    def discount(self, counts: dict[tuple[int, ...], int], count: int) -> float:
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        return {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2}.get(count, 3 - 4 * y * n4 / n3)

    def p(self, word: int, context: tuple[int, ...], top: bool = True) -> float:
        order = len(context) + 1
        counts = self.raw[order] if top else self.seen_after[order]
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        lower = self.p(word, context[1:], top=False) if context else 1 / self.vocab_size
        if not after:
            return lower
        taken = {token: self.discount(counts, count) for token, count in after.items()}
        own = after.get(word, 0) - taken.get(word, 0.0)
        return (own + sum(taken.values()) * lower) / sum(after.values())


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kneser_ney_equals_its_definition(order: int) -> None:
    draw = np.minimum(np.random.default_rng(0).zipf(1.3, 940), 60) - 1  # rare ones too, so that every discount exists
    tokens, window = draw[:900], draw[900:]
    plain = PlainKneserNey(tokens.tolist(), order, 60)
    ids = window.tolist()
    expected = [math.log(plain.p(ids[t], tuple(ids[max(0, t - order + 1) : t]))) for t in range(1, len(ids))]
    found = KneserNey(order).fit(tokens, 60).log_probs(window[None].astype(np.int64))
    assert found.shape == (1, 39)
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


def test_witten_bell_equals_its_definition() -> None:
    text = zipf(300, 7).tolist()
    raw = {n: counted(text if n > 1 else text[1:], n) for n in (1, 2, 3)}

    def p(word: int, context: tuple[int, ...]) -> float:
        after = {gram[-1]: count for gram, count in raw[len(context) + 1].items() if gram[:-1] == context}
        lower = p(word, context[1:]) if context else 1 / 7
        return (after.get(word, 0) + len(after) * lower) / (sum(after.values()) + len(after)) if after else lower

    model = Trigram().fit(np.array(text), 7)
    for context in ([0, 1], [2, 2], [6, 0], [5, 6], [4]):
        expected = [p(word, tuple(context)) for word in range(7)]
        np.testing.assert_allclose(distribution(model, context, 7), expected, rtol=1e-12)


def test_the_cache_is_the_weighted_share_of_the_window_s_past() -> None:
    model = UnigramCache().fit(zipf(2000, 10), 10)
    model.weight, model.half_life = 0.4, 8.0
    ids = [1, 4, 1, 1, 7, 4]
    unigram_V = (np.exp(model.log_probs(np.array([[9, w] for w in range(10)])))[:, 0] - 0.4 * np.eye(10)[9]) / 0.6
    for t in range(1, len(ids)):
        weights = [0.5 ** ((t - 1 - s) / 8.0) for s in range(t)]
        share = sum(w for w, token in zip(weights, ids, strict=False) if token == ids[t]) / sum(weights)
        found = math.exp(model.log_probs(np.array([ids]))[0, t - 1])
        assert found == pytest.approx(0.6 * unigram_V[ids[t]] + 0.4 * share, rel=1e-9)


def bursts(n_rows: int, seed: int) -> np.ndarray:
    """Windows that use five of 200 tokens each, in any order."""
    random = np.random.default_rng(seed)
    chosen = random.integers(200, size=(n_rows, 5))
    return np.take_along_axis(chosen, random.integers(5, size=(n_rows, 65)), axis=1)


def test_the_cache_learns_its_weight_from_held_out_training_text() -> None:
    repeating = UnigramCache().fit(bursts(400, 0), 200)
    assert repeating.weight > 0.8
    assert evaluate(repeating, bursts(20, 1), np.ones(200, int)).loss < 2.6  # log 5 = 1.6, log 200 = 5.3
    independent = UnigramCache().fit(np.random.default_rng(0).integers(200, size=(400, 65)), 200)
    assert independent.weight < 0.02


def test_known_entropies_are_approached() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(32, size=60_000)
    for model in (Bigram(), KneserNey(3)):
        loss = evaluate(model.fit(noise[:50_000], 32), [noise[50_000:]], np.ones(32, int)).loss
        assert loss == pytest.approx(math.log(32), abs=0.05)
    # Each token is the sum of the two before it, or any token one time in ten.
    pair = [1, 2]
    for wild, token in zip(random.random(60_000) < 0.1, noise.tolist(), strict=True):
        pair.append(token if wild else (pair[-1] + pair[-2]) % 32)
    chain = np.array(pair)
    entropy = -(0.9 + 0.1 / 32) * math.log(0.9 + 0.1 / 32) - 31 * 0.1 / 32 * math.log(0.1 / 32)
    seen = {
        name: evaluate(model.fit(chain[:50_000], 32), [chain[50_000:]], np.ones(32, int)).loss
        for name, model in {"bigram": Bigram(), "trigram": Trigram(), "kneser-ney": KneserNey(3)}.items()
    }
    assert seen["bigram"] > 3.3
    assert entropy < seen["kneser-ney"] < entropy + 0.15
    assert entropy < seen["trigram"] < entropy + 0.25


def test_n_grams_do_not_cross_rows() -> None:
    rows = np.array([[0, 1, 2], [3, 4, 5]])
    orders = count_ngrams(rows, 6, 3)
    pairs = [divmod(key, 6) for key in orders[1].keys.tolist()]
    assert pairs == [(0, 1), (1, 2), (3, 4), (4, 5)]
    assert orders[2].keys.tolist() == [(0 * 6 + 1) * 6 + 2, (3 * 6 + 4) * 6 + 5]
    assert orders[0].counts.tolist() == [0, 1, 1, 0, 1, 1]  # what the rows predict
    assert len(count_ngrams(rows.ravel(), 6, 2)[1].keys) == 5


def test_counts_add_up_and_can_be_shared_between_models() -> None:
    tokens, window = zipf(5000, 40), zipf(60, 40, seed=3)[None].astype(np.int64)
    orders = count_ngrams(tokens, 40, 5)
    assert [int(grams.counts.sum()) for grams in orders] == [4999, 4999, 4998, 4997, 4996]
    expected = Counter(zip(tokens.tolist(), tokens.tolist()[1:], strict=False))
    assert {divmod(key, 40): n for key, n in zip(orders[1].keys.tolist(), orders[1].counts, strict=True)} == expected
    for order in (2, 3, 5):
        shared = KneserNey(order).fit_counts(orders).log_probs(window)
        np.testing.assert_array_equal(shared, KneserNey(order).fit(tokens, 40).log_probs(window))


def test_a_window_s_prediction_depends_on_its_own_past_alone() -> None:
    tokens, window = zipf(3000, 20), zipf(50, 20, seed=7).astype(np.int64)
    for make in MODELS:
        model = make().fit(tokens, 20)
        whole = model.log_probs(window[None])[0]
        np.testing.assert_array_equal(model.log_probs(window[None, :20])[0], whole[:19])
        both = model.log_probs(np.stack([zipf(50, 20, seed=8).astype(np.int64), window]))
        np.testing.assert_allclose(both[1], whole, rtol=1e-13)


class AsNetwork(torch.nn.Module):
    """A count model that answers as a language model does: log p of every next token at every position."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        super().__init__()
        self.model, self.vocab_size = model, vocab_size
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, ids_BT: torch.Tensor, documents_BT: torch.Tensor | None = None) -> Any:
        ids = ids_BT.numpy()
        logits_BTV = np.empty((*ids.shape, self.vocab_size))
        for t in range(ids.shape[1]):
            for row, past in enumerate(ids[:, : t + 1].tolist()):
                logits_BTV[row, t] = np.log(distribution(self.model, past, self.vocab_size))

        class Answer:
            logits = torch.from_numpy(logits_BTV)

        return Answer()


def test_the_arithmetic_is_that_of_a_network_s_evaluation() -> None:
    tokens, text = zipf(2000, 12), zipf(70, 12, seed=2).astype(np.int64)
    windows = [text[start : start + 17] for start in range(0, 69, 16)]  # the last one is shorter
    lengths = np.arange(12)
    for model in (KneserNey(3).fit(tokens, 12), UnigramCache().fit(tokens, 12)):
        network = held_out_loss(AsNetwork(model, 12), windows, lengths)  # type: ignore[arg-type]
        found = evaluate(model, iter(windows), lengths)
        assert (found.n_tokens, found.n_bytes) == (network.n_tokens, network.n_bytes) == (69, int(text[1:].sum()))
        assert found.bits_per_byte == pytest.approx(network.bits_per_byte, rel=1e-6)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> TokenisedText:
    folder = tmp_path_factory.mktemp("stories")
    random = np.random.default_rng(0)
    names, verbs, things = ["Mia", "Tom", "Ada"], ["saw", "took", "liked"], ["ball", "kite", "drum", "lamp"]
    lines = [
        " ".join(f"{random.choice(names)} {random.choice(verbs)} the {random.choice(things)}." for _ in range(8))
        for _ in range(600)
    ]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(lines), encoding="utf-8")
    return prepare(str(folder / "stories.txt"), TextConfig(vocab_size=300, val_frac=0.1), cache=folder)


def test_all_baselines_come_from_one_text(stories: TokenisedText) -> None:
    windows = list(validation_windows(stories.val, 32))
    lengths = byte_lengths(stories.tokenizer)
    found = {line["name"]: line for line in baselines(stories, iter(windows), lengths)}
    assert list(found) == ["unigram cache", "bigram", "trigram", "kneser-ney 3", "kneser-ney 4", "kneser-ney 5"]
    loss = {name: line["val_loss"] for name, line in found.items()}
    assert max(loss["kneser-ney 3"], loss["trigram"]) < loss["bigram"] < loss["unigram cache"]
    n_bytes = sum(int(lengths[window[1:]].sum()) for window in windows)
    n_tokens = sum(len(window) - 1 for window in windows)
    for line in found.values():
        assert line["val_bpb"] == pytest.approx(line["val_loss"] * n_tokens / math.log(2) / n_bytes)
    tokens = np.asarray(stories.streams[0].stream.tokens)
    alone = evaluate(KneserNey(3).fit(tokens, stories.tokenizer.vocab_size), windows, lengths)
    assert alone.loss == pytest.approx(loss["kneser-ney 3"], rel=1e-12)


def test_windows_of_a_second_pass_are_counted_once(stories: TokenisedText) -> None:
    batches = Batches(stories, seq_len=32, n_sequences=4, seed=0)
    one_pass = -(-batches.n_windows // 4)
    rows = distinct_rows(batches, 3 * one_pass)
    assert rows.shape == (batches.n_windows, 33)
    np.testing.assert_array_equal(rows[:4], batches.at(0))
    few = distinct_rows(batches, 5)
    np.testing.assert_array_equal(few, np.concatenate([batches.at(step) for step in range(5)]))
    windows, lengths = list(validation_windows(stories.val, 32)), byte_lengths(stories.tokenizer)
    more, less = (baselines(stories, windows, lengths, rows=found)[3]["val_loss"] for found in (rows, few))
    assert more < less


def test_the_benchmark_reads_what_the_recipe_s_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(f"{i} and {i + 1} are {2 * i + 1}." for i in range(900)))
    overrides = [f"corpus={tmp_path / 'a.txt'}", "text.vocab_size=300", "model.max_seq_len=32", "batch_tokens=128"]
    found = measure("gpt:small", [*overrides, "steps=20", "train.eval_tokens=640"])
    assert found["tokens_read"] == found["tokens_counted"] == 20 * 128
    assert found["tokens_predicted"] <= 640
    losses = [line["val_loss"] for line in found["baselines"]]
    assert len(losses) == 6 and all(0 < loss < math.log(300) for loss in losses)


def test_the_highest_order_fits_its_keys_into_63_bits() -> None:
    assert highest_order(4096) == 5 and 4096**5 < 2**63 <= 4096**6
    assert highest_order(50_257) == 4 and highest_order(2) == 8
    tokens = np.array([4095] * 40 + [0, 4095])
    assert count_ngrams(tokens, 4096, 5)[4].keys[-1] == 4096**5 - 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: KneserNey(1), "order 1: .* at least 2"),
        (lambda: KneserNey(6).fit(np.zeros(50, int), 4096), "order 6 with 4096 tokens: use an order from 1 to 5"),
        (lambda: KneserNey(3).fit(np.zeros(2, int), 4), "rows of 2 are too short for order 3"),
        (lambda: KneserNey(3).fit(np.zeros((2, 2, 5), int), 4), "tokens"),
        (lambda: Bigram().fit(np.array([0, 1, 4]), 4), "whole numbers from 0 to 3"),
        (lambda: Bigram().fit(np.array([0.0, 1.0, 2.0]), 4), "whole numbers"),
        (lambda: Bigram().fit(np.array([0, 1, 2]), 4).log_probs(np.array([[0, 9]])), "whole numbers from 0 to 3"),
        (lambda: Bigram().log_probs(np.array([[0, 1]])), "call fit"),
        (lambda: UnigramCache().log_probs(np.array([[0, 1]])), "call fit"),
        (lambda: UnigramCache().fit(np.zeros(5, int), 4), "5 are too few"),
        (lambda: Trigram().fit_counts(count_ngrams(np.zeros(9, int), 4, 2)), "only orders up to 2"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_text_of_one_token_is_learned_and_leaves_room_for_others() -> None:
    for make in MODELS:
        p = distribution(make().fit(np.zeros(200, int), 5), [0, 0, 0], 5)
        assert p[0] > 0.9 and (p > 0).all()
