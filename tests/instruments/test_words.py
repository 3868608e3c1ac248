"""The steps that add and remove a known word are found, with the exact changes; an untrained model names nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.experiments.readability import step_losses
from homunculi.instruments import words
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look, observe
from homunculi.instruments.stream import NEEDS, START, TAPS, states_of
from homunculi.instruments.words import MEASURES, MOST_WORDS, measure, raised_and_lowered
from homunculi.models import build, get
from tests.instruments.planted_words import FIRST, N_WORDS, PIECES, SECOND, Planted, expected, some_ids

ADDED = (8.0, 6.0)


def row(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    return found["by_step"][MEASURES.index(name)]


def test_the_words_that_steps_add_and_remove_are_named_with_their_changes() -> None:
    ids_BT = some_ids()
    found = look(Planted(*ADDED), ids_BT, ["words"], pieces=PIECES)["words"]
    p_3BTV = expected(ids_BT, *ADDED)[:, :, :-1]
    change_2V = 100 * np.diff(p_3BTV, axis=0).mean((1, 2))
    assert found.axes["change"] == ("word", "step") and found.labels["step"] == ("0", "1")
    ids = [PIECES.index(name) for name in found.labels["word"]]
    assert ids[0] == FIRST and SECOND in ids
    np.testing.assert_allclose(found.values["change"], change_2V[:, ids].T, atol=2e-3)
    by_word = dict(zip(ids, found.values["change"], strict=True))
    assert by_word[FIRST][0] > 50 and by_word[FIRST][1] < -50 and by_word[SECOND][1] > 30
    assert abs(by_word[SECOND][0]) < 5
    assert max(abs(value).max() for word, value in by_word.items() if word not in (FIRST, SECOND)) < 20


def test_measures_of_each_state_are_those_of_their_definitions() -> None:
    ids_BT = some_ids()
    found = look(Planted(*ADDED), ids_BT, ["words"])["words"]
    p_3BTV = expected(ids_BT, *ADDED)[:, :, :-1]
    loss_3 = -np.log(np.take_along_axis(p_3BTV, ids_BT[None, :, 1:, None].numpy(), -1)).mean((1, 2, 3))
    assert found.labels["state"] == (START, "0", "1")
    np.testing.assert_allclose(row(found.values, "loss"), loss_3, rtol=1e-4)
    np.testing.assert_allclose(row(found.values, "toward"), [np.nan, *(loss_3[:-1] - loss_3[1:])], rtol=1e-3)
    moved_2 = np.abs(np.diff(p_3BTV, axis=0)).sum(-1).mean((1, 2)) / 2
    np.testing.assert_allclose(row(found.values, "moved"), [np.nan, *moved_2], rtol=1e-4)
    assert row(found.values, "kept").tolist() == [0.0, 0.0, 1.0]
    assert float(found.values["gain of all steps"]) == pytest.approx(loss_3[0] - loss_3[2], rel=1e-4)
    assert float(found.values["mean moved"]) == pytest.approx(moved_2.mean(), rel=1e-4)


def test_the_start_of_a_readable_model_names_the_token_itself() -> None:
    planted = look(Planted(*ADDED), some_ids(), ["words"])["words"]
    assert row(planted.values, "itself").tolist() == [1.0, 0.0, 0.0]
    torch.manual_seed(0)
    real = build("vocab_dense_memory", vocab_size=N_WORDS, n_steps=3, d_memory=8, d_mlp=8, max_seq_len=32)
    assert row(look(real, some_ids(), ["words"])["words"].values, "itself")[0] == 1.0
    torch.manual_seed(0)
    plain = build("gpt", vocab_size=N_WORDS, d_model=16, n_heads=2, n_blocks=2, max_seq_len=32, tied=False)
    assert row(look(plain, some_ids(), ["words"])["words"].values, "itself")[0] < 0.5


def test_steps_that_do_nothing_and_untrained_ones_move_no_word() -> None:
    still = look(Planted(0.0, 0.0), some_ids(), ["words"])["words"]
    assert "change" not in still.values and row(still.values, "moved")[1:].tolist() == [0.0, 0.0]
    torch.manual_seed(0)
    untrained = build("gpt", vocab_size=N_WORDS, d_model=16, n_heads=2, n_blocks=2, max_seq_len=32)
    found = look(untrained, some_ids(), ["words"], pieces=PIECES)["words"]
    assert np.abs(found.values["change"]).max() < 2 and np.nanmax(row(found.values, "moved")) < 0.05


def test_a_lens_is_told_from_states_that_are_words() -> None:
    torch.manual_seed(0)
    for width in (32, N_WORDS):
        plain = build("gpt", vocab_size=N_WORDS, d_model=width, n_heads=2, n_blocks=2, max_seq_len=32)
        assert look(plain, some_ids(), ["words"])["words"].notes[0].startswith("a logit lens")
    assert look(Planted(*ADDED), some_ids(), ["words"])["words"].notes[0].startswith("states are as wide as")


def test_rows_read_in_pieces_are_the_rows_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BT = Planted(*ADDED), some_ids()
    whole = look(model, ids_BT, ["words"])["words"]
    monkeypatch.setattr("homunculi.instruments.stream.MOST_LOGITS", 1)
    pieces = look(model, ids_BT, ["words"])["words"]
    np.testing.assert_allclose(pieces.values["by_step"], whole.values["by_step"], rtol=1e-5)
    assert pieces.labels["word"] == whole.labels["word"]


def test_without_a_start_the_first_step_is_not_judged_and_it_is_said() -> None:
    model, ids_BT = Planted(*ADDED), some_ids()
    seen = observe(model, ids_BT, NEEDS)
    found = measure(seen)
    assert found is not None and found.labels["state"] == ("0", "1") and found.labels["step"] == ("1",)
    assert "first step is not judged" in found.notes[-1]
    alone = Observation(model, ids_BT[:, :1], seen.taps, seen.logits_BTV)
    assert measure(alone) is None


def test_columns_are_judged_from_where_they_start_anew() -> None:
    torch.manual_seed(0)
    model = build("vocab_columns", **(dict(get("vocab_columns").variants[0]) | {"vocab_size": 64})).eval()
    ids_BT = torch.randint(0, 64, (2, 12))
    found = look(model, ids_BT, ["words"])["words"]
    seen = observe(model, ids_BT, [*TAPS, *NEEDS])
    states = list(states_of(seen).values())
    first = 1 + model.config.n_steps  # the first state of the second column
    p, q = (model.readout(states[i]).detach().softmax(-1)[:, :-1] for i in (0, first))
    assert row(found.values, "moved")[first] == pytest.approx(float((q - p).abs().sum(-1).mean() / 2), rel=1e-3)
    losses = row(found.values, "loss")
    assert row(found.values, "toward")[first] == pytest.approx(losses[0] - losses[first], abs=1e-4)


def test_tokens_that_skip_a_pass_are_moved_by_it_no_more() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": 24}
    model = build("mor", n_slots=4, n_passes=2, capacities=(1.0, 0.25), burst=1, **shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids_BT = torch.randint(0, 40, (3, 24))
    seen = observe(model, ids_BT, [*TAPS, *NEEDS, "steps.2.router.taking"])
    before, after = list(states_of(seen).values())[2:4]
    taking_BT = seen.taps["steps.2.router.taking"].bool()[:, :-1]
    p, q = (model.readout(x).detach().softmax(-1)[:, :-1] for x in (before, after))
    found = measure(seen)
    assert found is not None and 0 < int(taking_BT.sum()) < taking_BT.numel()
    moved_BT = (q - p).abs().sum(-1) / 2
    assert moved_BT[~taking_BT].max() == 0
    assert row(found.values, "moved")[3] == pytest.approx(float(moved_BT.mean()), rel=1e-4)


def test_few_words_of_many_steps_are_shown() -> None:
    change_SV = torch.randn(12, 100, generator=torch.Generator().manual_seed(0))
    ids = words._most_moved(change_SV)
    assert len(ids) <= MOST_WORDS and set(change_SV.argmax(-1).tolist()) <= set(ids)
    assert set(change_SV.argmin(-1).tolist()) <= set(ids)


def test_what_does_not_change_and_what_is_no_number_is_not_named() -> None:
    change_NV = torch.tensor([[0.0, 0.3, -0.2, 0.0005], [torch.nan] * 4])
    up, down = raised_and_lowered(change_NV, 3, 3, least=0.001)
    assert up == [[(1, pytest.approx(0.3))], []] and down == [[(2, pytest.approx(-0.2))], []]


def test_losses_of_states_know_where_documents_begin() -> None:
    torch.manual_seed(0)
    model = build("vocab_dense_memory", vocab_size=32, n_steps=2, d_memory=8, d_mlp=8, max_seq_len=20)
    ids_BT = torch.randint(1, 32, (2, 20))
    ids_BT[:, 8] = 0
    found = look(model, ids_BT, ["words"], documents_BT=(ids_BT == 0).cumsum(1))["words"]
    losses = row(found.values, "loss")
    assert losses.tolist() == pytest.approx(step_losses(model, ids_BT, separator=0), rel=1e-5)
    assert abs(float(losses[-1]) - step_losses(model, ids_BT)[-1]) > 1e-4
