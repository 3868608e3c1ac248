"""Cells: what makes two of them the same, how they are kept, and what all architectures read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.experiments.skills.cells import Cell, Store, configuration, described
from homunculi.experiments.skills.feed import judged, pack, training_batches
from homunculi.experiments.skills.learning import build
from homunculi.experiments.skills.plan import QUICK, Settings, ask, points
from homunculi.experiments.skills.reading import DECODER
from homunculi.experiments.skills.sizing import Frame, Side, build_empty, fitted, parameters_of, small, state_bytes
from homunculi.models import get
from homunculi.tasks import registry
from homunculi.train.loss import IGNORED

TINY = Settings(
    seeds=2, steps=2, rows=4, eval_rows=8, lrs=(1e-3, 1e-2), wds=(0.0,), frame=Frame(width=16, match="none")
)


def side(name: str, frame: Frame, **own: object) -> Side:
    return Side(name, replace(small(get(name).config_type(), frame), **own))


def cells(name: str = "gpt", dials: dict[str, str] | None = None) -> list[Cell]:
    curve = points([side(name, TINY.frame)], ask(["parity"], {"length": "8", **(dials or {})}), TINY)
    return list(curve[0].grid)


def test_a_key_follows_from_what_determines_the_result_and_not_from_names() -> None:
    first, second = cells()
    assert first.key == replace(first, side="other", files=("somewhere.py",)).key
    assert first.key == Cell.from_json(first.to_json()).key
    others = [second, replace(first, seed=1), replace(first, steps=3), *cells("ncn"), *cells(dials={"length": "16"})]
    assert len({first.key, *(cell.key for cell in others)}) == 1 + len(others)


def test_a_finished_cell_is_found_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), cells()[0]
    assert store.find(cell) is None
    store.keep(cell, {"test": {"accuracy": 0.5}})
    found = store.find(cell)
    assert found is not None and found["test"] == {"accuracy": 0.5}
    whole = store.path(cell.key).read_bytes()
    store.path(cell.key).write_bytes(whole[: len(whole) // 2])
    assert store.find(cell) is None


def test_a_kept_cell_tells_no_place_of_files(tmp_path: Path) -> None:
    cell = replace(cells()[0], files=("/home/somebody/own.py",))
    Store(tmp_path).keep(cell, {"test": {}})
    kept = Store(tmp_path).path(cell.key).read_text()
    assert "somebody" not in kept and "parity" in kept


def test_another_way_of_training_makes_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells()[0]
    before = cell.key
    monkeypatch.setattr("homunculi.experiments.skills.cells._code_of_training", lambda: "other")
    assert cell.key != before


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), 0.0, -1.0])
def test_rates_are_positive_and_finite(rate: float) -> None:
    with pytest.raises(InputError, match=r"^lrs: "):
        Settings(lrs=(rate,))


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --results"):
        Store(tmp_path / "file").keep(cells()[0], {"test": {}})


def test_all_architectures_read_the_same_examples() -> None:
    one, other = cells("gpt")[0], cells("recursive")[1]
    task = registry.get("parity")
    for batch, again, _ in zip(training_batches(one, task), training_batches(other, task), range(20), strict=False):
        assert batch.equal(again)
    assert (judged(one, task, "test").ids_BT == judged(other, task, "test").ids_BT).all()
    next_seed = replace(one, seed=1)
    assert not next(training_batches(one, task)).equal(next(training_batches(next_seed, task)))


def test_only_counted_positions_have_targets() -> None:
    task = registry.get("recall")
    examples = task.generate(np.random.default_rng(0), 4, split="train")
    packed = pack(examples).numpy()
    assert (packed[0] == examples.ids_BT).all()
    assert ((packed[1] != IGNORED) == examples.counted_BT).all()
    assert (packed[1][examples.counted_BT] == examples.targets_BT[examples.counted_BT]).all()


@pytest.mark.parametrize("name", ["ncn", "recursive", "homunculi"])
def test_all_architectures_are_made_equal_in_parameters(name: str) -> None:
    settings = replace(QUICK, frame=Frame())
    cell = points(
        [side(name, settings.frame)], ask(["recall"], {"length": "64", "pairs": "4", "vocabulary": "64"}), settings
    )[0].grid[0]
    config = configuration(cell.model)
    assert abs(parameters_of(config) / settings.frame.parameters - 1) <= 0.01
    assert config.vocab_size == 65
    assert config.max_seq_len == 64
    assert described(config) == cell.model


@pytest.mark.parametrize("name", ["vocab_low_rank", "vocab_slices", "vocab_tied_fourier", "vocab_dense_memory"])
def test_models_as_wide_as_their_words_get_unused_words_until_they_are_equal(name: str) -> None:
    settings = replace(QUICK, frame=Frame())
    models = [
        points([side(name, settings.frame)], ask([task], {}), settings)[0].grid[0].model for task in ("parity", "copy")
    ]
    for model in models:
        assert abs(parameters_of(configuration(model)) / settings.frame.parameters - 1) <= 0.01
        assert model["vocab_size"] >= settings.frame.width
    assert {**models[0], "max_seq_len": 0} == {**models[1], "max_seq_len": 0}


def test_a_size_that_cannot_be_met_is_said_and_what_is_far_is_refused() -> None:
    bands = side("vocab_bands", Frame())
    size = parameters_of(fitted(bands, Frame(), 2, (8, 8)))
    assert 0.01 < abs(size / Frame().parameters - 1) <= 0.02
    with pytest.raises(InputError, match="comes within 1 %"):
        fitted(replace(bands, fixed=frozenset({"n_channels", "n_steps"})), Frame(), 2, (8, 8))


def test_a_plain_part_that_would_be_smaller_than_nothing_is_refused() -> None:
    config = get("homunculi").config_type(vocab_size=8, regions=("temporal",), filled=("neocortex",), d_mlp=512)
    with pytest.raises(InputError, match=r"model\.filled: neocortex"):
        build_empty(replace(config, n_experts=1, n_active=1, d_expert=8))


def test_unused_words_are_no_answers_and_without_matching_there_are_none() -> None:
    bare = replace(QUICK, frame=Frame(width=16, match="none"))
    own = points([side("vocab_low_rank", bare.frame)], ask(["compression"], {}), bare)[0].grid[0]
    assert own.model["vocab_size"] == 17
    wide = replace(own, model=own.model | {"vocab_size": 40})
    decoder = getattr(build(wide, registry.get("compression")), DECODER)
    assert (decoder.state.in_features, decoder.answer.out_features) == (40, 17)


def test_what_the_user_chose_is_not_turned_to_make_it_equal() -> None:
    settings = replace(QUICK, frame=Frame(width=16))
    one = replace(side("gpt", settings.frame, n_blocks=1), fixed=frozenset({"n_blocks"}))
    with pytest.raises(InputError, match=r"comes within 1 %"):
        points([replace(one, fixed=frozenset({"n_blocks", "d_mlp", "d_model"}))], ask(["copy"], {}), settings)
    wide = replace(settings, frame=Frame())
    cell = points([replace(one, config=replace(one.config, d_model=64))], ask(["copy"], {}), wide)[0].grid[0]
    assert cell.model["n_blocks"] == 1


def test_a_plain_transformer_of_the_frame_is_its_own_measure() -> None:
    frame = Frame()
    config = side("gpt", frame).config
    assert parameters_of(config) == frame.parameters
    assert state_bytes(config, 48) == frame.state_bytes(48)


@pytest.mark.parametrize("name", ["recursive", "homunculi"])
def test_state_is_made_equal_at_the_length_of_the_task(name: str) -> None:
    settings = replace(QUICK, frame=Frame(match="state"))
    cell = points(
        [side(name, settings.frame)], ask(["recall"], {"length": "64", "pairs": "4", "vocabulary": "64"}), settings
    )[0].grid[0]
    assert abs(state_bytes(configuration(cell.model), 64) / settings.frame.state_bytes(64) - 1) <= 0.15


def test_a_model_has_room_for_what_is_only_tested() -> None:
    task = registry.get("parity")
    longest = max(task.beyond["length"])
    assert configuration(cells()[0].model).max_seq_len == longest


@pytest.mark.parametrize(
    ("tasks", "dials", "words"),
    [
        (["recal"], {}, "recall"),
        (["parity"], {"lenght": "8"}, "no such dial"),
        (["parity"], {"recall.pairs": "8"}, "none of the tasks"),
        (["parity"], {"length": "long"}, "no number"),
        (["parity"], {"length": "8.5"}, "whole number"),
        (["recall"], {"vocabulary": "16,32"}, "several values"),
    ],
)
def test_impossible_tasks_and_dials_are_refused(tasks: list[str], dials: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        ask(tasks, dials)
    assert "\n" not in str(refused.value)


def test_more_pairs_than_the_length_allows_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match=r"recall\.pairs"):
        points([side("gpt", TINY.frame)], ask(["recall"], {"length": "64", "pairs": "4,32", "vocabulary": "64"}), TINY)


def test_a_sweep_may_be_given_and_a_quick_one_is_shorter() -> None:
    asked, given = ask(["recall"], {})[0], ask(["recall"], {"recall.pairs": "4,8"})[0]
    assert given.values(quick=False) == (4, 8)
    assert asked.values(quick=False) == registry.get("recall").dials["pairs"].values
    assert len(asked.values(quick=True)) < len(asked.values(quick=False))
