"""A look ahead of any shape is found by cuts, and the map points at who sees what."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import toys
import toys_language
import toys_looks
from toys_looks import BOTH, EVALUATION, TRAINING, Look, Looking

from homunculi.cli.certify import _lines
from homunculi.experiments import causality, leaks
from homunculi.experiments.causality import Edit, Suspects, check_token_by_token, lengths_in_order
from homunculi.experiments.certificate import Certificate, Check, LeakMap, LeakPair
from homunculi.experiments.certify import certify
from homunculi.experiments.leaks import Comparison, LeakSearch, cuts_in_order, describe, pattern, ranges
from homunculi.experiments.subject import prepared

CONTEXT = 32
ALL = set(range(1, 12))
EDITS = {"token_edits", "token_edits_training"}
IN_EVALUATION = {"every_cut", "prefix_consistency"}


def certified(look: Look, context: int = CONTEXT, **more: object) -> Certificate:
    torch.manual_seed(0)
    return certify(Looking(look, **more), toys.VOCAB, context, trial_seconds=0)  # type: ignore[arg-type]


def failures(certificate: Certificate) -> set[str]:
    return {check.name for check in certificate.failed}


def found_pairs(found: LeakMap) -> set[tuple[int, int]]:
    assert found.n_pairs == len(found.pairs), "some pairs are not listed"
    return {(pair.reader, pair.source) for pair in found.pairs}


def searched(
    model: torch.nn.Module,
    context: int = CONTEXT,
    *,
    suspects: Suspects | None = None,
    training: bool = False,
    row_seconds: float = 0.0,
) -> tuple[Check, LeakSearch]:
    """The cuts alone."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(toys.VOCAB, (1, context), generator=generator)
    with prepared(model, ids_BT, 0, []) as subject:
        search = LeakSearch(subject, ids_BT, toys.VOCAB, generator, row_seconds, [])
        return search.check(suspects or Suspects(), training=training), search


# Shapes of leaks.


@pytest.mark.parametrize("modes", [BOTH, [TRAINING]], ids=["both modes", "training"])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("blocks", [toys_looks.mean_of_blocks, toys_looks.next_in_blocks])
def test_a_look_inside_aligned_blocks_is_found_and_its_blocks_named(
    blocks: Callable[[int], Look], size: int, modes: list[bool]
) -> None:
    certificate = certified(blocks(size), modes=modes)
    assert not certificate.causal_in_training and certificate.causal == (EVALUATION not in modes)
    assert failures(certificate) >= {"every_cut_training"} | (IN_EVALUATION if EVALUATION in modes else set())
    assert [found.mode for found in certificate.leaks] == (["evaluation"] if EVALUATION in modes else []) + ["training"]
    n_in_block = size * (size - 1) // 2 if blocks is toys_looks.mean_of_blocks else size - 1
    for found in certificate.leaks:
        assert f"aligned blocks of {size}" in found.summary
        assert found.n_pairs == CONTEXT // size * n_in_block and found.n_sources == CONTEXT - 1
        assert all(pair.reader < pair.source and pair.reader // size == pair.source // size for pair in found.pairs)


@pytest.mark.parametrize("modes", [BOTH, [TRAINING]], ids=["both modes", "training"])
def test_one_block_as_long_as_the_row_is_found(modes: list[bool]) -> None:
    found = certified(toys_looks.mean_of_blocks(CONTEXT), modes=modes).leaks[-1]
    assert found.summary == "every position sees all later ones"
    assert found.n_pairs == CONTEXT * (CONTEXT - 1) // 2 and len(found.pairs) == leaks.PAIRS
    assert all(cell is not None for r, row in enumerate(found.cells) for cell in row[r:])
    assert all(cell is None for r, row in enumerate(found.cells) for cell in row[:r])


@pytest.mark.parametrize("modes", [BOTH, [TRAINING]], ids=["both modes", "training"])
@pytest.mark.parametrize("width", [2, 4])
def test_a_circular_wrap_around_is_found_and_the_last_positions_named(width: int, modes: list[bool]) -> None:
    certificate = certified(toys_looks.circular(width), modes=modes)
    assert "every_cut_training" in failures(certificate)
    assert failures(certificate) & IN_EVALUATION == (IN_EVALUATION if EVALUATION in modes else set())
    seen = {(i, CONTEXT - shift + i) for shift in range(1, width) for i in range(shift)}
    for found in certificate.leaks:
        assert found_pairs(found) == seen
        assert found.summary.endswith("see the last 3" if width == 4 else "position 0 sees 31")
        assert found.cells[0][-1] and not any(found.cells[-1][-1:])


@pytest.mark.parametrize("reader", range(CONTEXT - 1))
def test_any_single_pair_is_found(reader: int) -> None:
    for training in BOTH:
        check, search = searched(Looking(toys_looks.one_pair(reader, reader + 1), [training]), training=training)
        assert not check.passed
        assert found_pairs(search.leaks[0]) == {(reader, reader + 1)}
        assert check.note.endswith(f"position {reader} sees {reader + 1}")
        check, search = searched(Looking(toys_looks.one_pair(reader, reader + 1), [training]), training=not training)
        assert check.passed and not search.leaks


@pytest.mark.parametrize("reader", range(0, CONTEXT - 1, 3))
def test_a_single_pair_behind_a_threshold_is_found(reader: int) -> None:
    torch.manual_seed(0)
    check, search = searched(Looking(toys_looks.one_pair_by_sign(reader, reader + 1)))
    assert not check.passed
    assert found_pairs(search.leaks[0]) == {(reader, reader + 1)}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_single_pair_in_a_long_row_is_found_where_sampled_edits_miss_it(dropout: float) -> None:
    for modes in ([EVALUATION], [TRAINING]):
        certificate = certified(toys_looks.one_pair(77, 78), 128, modes=modes, dropout=dropout)
        assert certificate.causal == (modes == [TRAINING])
        assert certificate.causal_in_training == (modes == [EVALUATION])
        assert failures(certificate) >= (IN_EVALUATION if modes == [EVALUATION] else {"every_cut_training"})
        assert not failures(certificate) & EDITS, "found by luck: this is to show that cuts are needed"
        assert [found_pairs(found) for found in certificate.leaks] == [{(77, 78)}]
        assert certificate.leaks[0].cell == 8 and certificate.leaks[0].cells[9][9] > 0


@pytest.mark.parametrize(("reader", "source"), [(0, 31), (5, 20), (30, 31)])
def test_a_distant_pair_is_found(reader: int, source: int) -> None:
    found = certified(toys_looks.one_pair(reader, source)).leaks[0]
    assert found_pairs(found) == {(reader, source)} and found.summary == f"position {reader} sees {source}"


LENGTHS = [
    ("beyond some length", lambda n: n > 20, 32),
    ("at the full context alone", lambda n: n == 32, 32),
    ("below some length", lambda n: n < 9, 32),
    ("at multiples of 8, which the context is", lambda n: n % 8 == 0, 32),
    ("at multiples of 7, which it is not", lambda n: n % 7 == 0, 32),
    ("at no multiple of 8", lambda n: n % 8 != 0, 32),
    ("at odd lengths", lambda n: n % 2 == 1, 32),
    ("at even lengths", lambda n: n % 2 == 0, 31),
    ("at one length", lambda n: n == 19, 32),
]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("wanted", "context"), [case[1:] for case in LENGTHS], ids=[case[0] for case in LENGTHS])
def test_a_look_at_some_lengths_only_is_found_there(
    wanted: Callable[[int], bool], context: int, dropout: float
) -> None:
    for modes in (BOTH, [TRAINING]):
        certificate = certified(
            toys_looks.at_lengths(wanted, toys_looks.next_one), context, modes=modes, dropout=dropout
        )
        assert "every_cut_training" in failures(certificate) and not certificate.causal_in_training
        assert failures(certificate) & IN_EVALUATION == (IN_EVALUATION if EVALUATION in modes else set())
        assert certificate.causal == (EVALUATION not in modes)
        for found in certificate.leaks:
            assert wanted(found.context) and (found.context == context) == wanted(context)
            assert all(pair.source == pair.reader + 1 for pair in found.pairs)
            assert found.summary in ("every position sees the next one", "position 0 sees 1")


def test_a_single_pair_at_one_length_is_found() -> None:
    look = toys_looks.at_lengths(lambda n: n == 23, toys_looks.one_pair(14, 15))
    for modes in ([EVALUATION], [TRAINING]):
        certificate = certified(look, modes=modes)
        assert [(found.context, found_pairs(found)) for found in certificate.leaks] == [(23, {(14, 15)})]
        note = next(check.note for check in certificate.failed if check.name.startswith("every_cut"))
        assert "in rows of 23 tokens" in note


# Honest models.


@pytest.mark.parametrize("make", toys_looks.HONEST)
def test_honest_model_raises_no_alarm(make: Callable[[], toys.Toy]) -> None:
    torch.manual_seed(0)
    certificate = certify(make(), toys.VOCAB, CONTEXT, trial_seconds=0)
    assert certificate.causal and certificate.causal_in_training
    assert not certificate.failed and certificate.leaks == ()
    notes = {check.name: check.note for check in certificate.checks}
    assert notes["every_cut"] == notes["every_cut_training"] == "all 31 cuts"
    assert notes["prefix_consistency"] == "all 31 shorter lengths"


@pytest.mark.parametrize("make", [toys.BatchCoupled, toys.RowsInLine])
def test_rows_that_see_each_other_are_asked_one_by_one(make: Callable[[], toys.Toy]) -> None:
    torch.manual_seed(0)
    check, search = searched(make())
    assert check.passed and not search.leaks
    with prepared(make(), search.ids_BT, 0, []) as subject:
        comparison = Comparison(subject, search.ids_BT, training=False, at_once=6)
        edits = [Edit(p, (search.ids_BT + 1) % toys.VOCAB) for p in range(1, 9)]
        for edit in edits:
            edit.ids_BT[:, : edit.position] = search.ids_BT[:, : edit.position]
        assert any(comparison.counts(moves) for moves in comparison.moves(edits))
        batches = list(comparison.ask(edits, 60.0))
        assert comparison.at_once == 1 and len(batches) == len(edits)
        assert not any(comparison.counts(moves) for batch in batches for _, moves in batch)


def test_a_leak_beside_coupled_rows_is_found_for_what_it_is() -> None:
    class Coupled(Looking):
        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().mix(x_BTD) - 0.1 * x_BTD.mean(0, keepdim=True)

    check, search = searched(Coupled(toys_looks.one_pair(11, 12)))
    assert not check.passed and found_pairs(search.leaks[0]) == {(11, 12)}


# Little time.


def test_few_cuts_for_a_slow_model_and_a_note_which() -> None:
    check, search = searched(Looking(toys_looks.one_pair(19, 20)), row_seconds=2.5)
    assert check.passed and check.note == "4 of 31 cuts"
    assert search.notes == ["every_cut: 4 of 31 cuts asked in the time given, at 1, 16-17, 31"]


def test_what_other_comparisons_hint_at_is_asked_first() -> None:
    model = Looking(toys_looks.one_pair(19, 20))
    check, search = searched(model, suspects=Suspects(cuts=[5, 20]), row_seconds=2.5)
    assert not check.passed and not search.notes
    assert found_pairs(search.leaks[0]) == {(19, 20)}


def test_a_source_that_was_not_among_those_asked_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "MAP_SECONDS", 0.0)
    for source in (9, 22, 31):
        check, search = searched(Looking(toys_looks.one_pair(3, source)), suspects=Suspects(cuts=[4]))
        found = search.leaks[0]
        assert not check.passed and found.n_sources < 4
        assert found_pairs(found) == {(3, source)} and check.note.endswith(f"position 3 sees {source}")


def test_where_training_leaves_evaluation_the_cut_is_asked_first() -> None:
    for dropout in (0.0, 0.2):
        _, search = searched(Looking(toys_looks.one_pair(19, 20), [TRAINING], dropout))
        with prepared(Looking(toys_looks.one_pair(19, 20), [TRAINING], dropout), search.ids_BT, 0, []) as subject:
            search.subject = subject
            suspects = search.suspects_in_training([8, 31], 60.0)
        assert 20 in suspects.cuts and not suspects.settled and not suspects.lengths.get(8)


@pytest.mark.parametrize("make", [toys.Dropped, toys.Recurrent, toys_looks.Alibi])
def test_training_without_dropout_is_evaluation(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    _, search = searched(toys.Toy())
    with prepared(make(), search.ids_BT, 0, []) as subject:
        search.subject = subject
        assert not torch.equal(subject.logits(search.ids_BT), subject.logits(search.ids_BT, training=True))
        assert search.suspects_in_training([1, 8, 31], 60.0) == Suspects(settled=True)


@pytest.mark.parametrize("n_tokens", [2, 3, 9, 31, 67])
def test_reading_token_by_token_reaches_every_position(n_tokens: int) -> None:
    config = toys_language.config(n_blocks=1, max_seq_len=n_tokens)
    ids_BT = torch.randint(config.vocab_size, (1, n_tokens), generator=torch.Generator().manual_seed(0))
    with prepared(toys_language.GPT(config), ids_BT, 0, []) as subject:
        suspects = Suspects()
        assert check_token_by_token(subject, ids_BT, suspects, 60.0).passed
        assert suspects == Suspects(settled=True)
    for reader in {*range(0, n_tokens - 1, 1 + n_tokens // 16), n_tokens - 2}:
        with prepared(toys_looks.OnePairDecoder(config, reader), ids_BT, 0, []) as subject:
            suspects = Suspects()
            assert not check_token_by_token(subject, ids_BT, suspects, 60.0).passed
            assert suspects == Suspects(cuts=[reader + 1])


def test_reading_that_ran_out_of_time_settles_nothing() -> None:
    config = toys_language.config()
    ids_BT = torch.zeros(1, config.max_seq_len, dtype=torch.long)
    with prepared(toys_language.GPT(config), ids_BT, 0, []) as subject:
        suspects = Suspects()
        check = check_token_by_token(subject, ids_BT, suspects, 0.0)
    assert check.passed and not suspects.settled and "0 of 8 steps" in check.note


def test_a_single_pair_of_a_decoder_is_found_though_few_cuts_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homunculi.experiments.subject.Subject.seconds", lambda self, ids: 5.0)
    config = toys_language.config(max_seq_len=100)
    torch.manual_seed(0)
    certificate = certify(toys_looks.OnePairDecoder(config, 77), config.vocab_size, 100, trial_seconds=0)
    assert not certificate.causal and {"every_cut", "token_by_token"} <= failures(certificate)
    assert [found_pairs(found) for found in certificate.leaks] == [{(77, 78)}] * 2


# What is asked, and what is told.


@pytest.mark.parametrize("context", [2, 3, 5, 32, 100, 512])
def test_all_cuts_and_lengths_are_in_order_once(context: int) -> None:
    for in_order in (cuts_in_order, lengths_in_order):
        listed = in_order(context, torch.Generator().manual_seed(0))
        assert sorted(listed) == list(range(1, context))
    early = cuts_in_order(context, torch.Generator().manual_seed(0))[: 8 + 3 * context.bit_length()]
    blocks = [2**k for k in range(1, 9) if 2**k <= context]
    assert all(any(p % block for p in early) for block in blocks)
    assert {near for block in blocks for near in (block - 1, block, block + 1) if near < context} <= {*early}


def test_early_lengths_leave_every_remainder() -> None:
    early = lengths_in_order(512, torch.Generator().manual_seed(0))[: 4 + causality.RESIDUES]
    late = [n for n in early if n > 512 - causality.RESIDUES - 1]
    for divisor in range(2, causality.RESIDUES + 1):
        assert {n % divisor for n in late} == set(range(divisor))


@pytest.mark.parametrize(
    ("pairs", "asked", "words"),
    [
        ([], ALL, "no later token does so alone, only several together"),
        ([(5, 6)], {6, 11}, "position 5 sees 6"),
        ([(i, i + 3) for i in range(9)], ALL, "every position sees the one 3 ahead"),
        ([(5, 6), (7, 8)], {6, 8}, "every position sees the next one, of the later tokens that were asked"),
        ([(i, j) for j in ALL for i in range(j)], ALL, "every position sees all later ones"),
        ([(i, j) for j in (2, 9) for i in range(j)], {2, 9}, "all later ones, of the later tokens that were asked"),
        ([(0, 1), (6, 7)], ALL, "positions see ahead only inside aligned blocks of 2"),
        ([(0, 2), (9, 11)], {2, 5, 11}, "aligned blocks of 3, of the later tokens that were asked"),
        ([(i, j) for i in range(9) for j in (9, 10, 11)], ALL, "positions 0 to 8 see the last 3"),
        ([(0, 11), (3, 11)], ALL, "positions 0 to 3 see the last one"),
        ([(2, 3), (3, 4), (2, 5)], ALL, "positions 2 to 3 see up to 3 ahead"),
        ([(2, 3), (3, 8)], ALL, "2 pairs: positions 2 to 3 see some of 3 to 8"),
    ],
)
def test_a_pattern_is_put_into_words(pairs: list[tuple[int, int]], asked: set[int], words: str) -> None:
    readers, sources = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    assert pattern(readers, sources, torch.tensor([j in asked for j in range(12)])).endswith(words)


def test_numbers_are_told_in_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    shortened = ranges(list(range(0, 400, 2)))
    assert shortened.startswith("0, 2, 4") and "…" in shortened and shortened.endswith("396, 398")


def test_a_map_is_told_by_groups_of_positions() -> None:
    strength_TT = torch.full((40, 40), float("nan"), dtype=torch.float64)
    strength_TT[:7, 7] = 0.0
    strength_TT[5, 7], strength_TT[:39, 39] = 1e-3, 0.0
    strength_TT[6, 39] = float("inf")
    found = describe(strength_TT, "evaluation")
    assert (found.cell, len(found.cells), found.n_sources, found.n_pairs) == (3, 14, 2, 2)
    assert found.pairs == (LeakPair(6, 39, float("inf")), LeakPair(5, 7, pytest.approx(1e-3)))
    assert found.cells[1][2] == pytest.approx(1e-3) and found.cells[2][13] == float("inf")
    assert found.cells[0][2] == 0.0 and found.cells[0][3] is None and found.cells[2][0] is None


def test_leaks_are_in_json_and_on_the_terminal() -> None:
    certificate = certified(toys_looks.one_pair(13, 14))
    shown = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    assert [found["mode"] for found in shown["leaks"]] == ["evaluation", "training"]
    pair = shown["leaks"][0]["pairs"][0]
    assert (pair["reader"], pair["source"], pair["text"]) == (13, 14, "position 13 sees 14")
    assert len(shown["leaks"][0]["cells"]) == shown["leaks"][0]["context"] // shown["leaks"][0]["cell"]
    lines = _lines(certificate).splitlines()
    row = next(line for line in lines if line.startswith("     12 "))
    assert row[8:].replace("+", "#").split() == [".", "#", *["."] * 8]
    assert "most: position 13 sees 14" in lines
    assert lines[-1] == "leaks in training: the same"
    assert certify(toys.bigram, toys.VOCAB, CONTEXT).to_json()["leaks"] == []


def test_one_position_a_mark_where_the_row_is_short() -> None:
    text = _lines(certified(toys_looks.one_pair(4, 5), 8))
    assert "a mark one position" in text
    row = next(line for line in text.splitlines() if line.startswith("      4 "))
    assert row[8:].replace("+", "#") == " " * 10 + "# . ."
