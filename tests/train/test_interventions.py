"""Interventions act wherever a model computes, keep it causal, and are refused where they cannot act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.evals.generation import Sampling, continue_text
from homunculi.evals.loss import held_out_loss
from homunculi.experiments.certify import certify
from homunculi.experiments.subject import add_noise
from homunculi.models import build
from homunculi.report.page import render
from homunculi.text.batches import validation_windows
from homunculi.text.config import TextConfig
from homunculi.text.shards import prepare
from homunculi.text.tokenizers import byte_lengths
from homunculi.train import interventions
from homunculi.train.config import RunConfig, TrainConfig
from homunculi.train.interventions import (
    Interventions,
    check_interventions,
    earlier_positions,
    intervene,
    read_intervention,
    shuffled,
)
from homunculi.train.loading import load
from homunculi.train.loss import TrainingLoss

IDS = torch.randint(30, (2, 13), generator=torch.Generator().manual_seed(0))


def model(name: str = "ncn", *texts: str, **fields: Any) -> LanguageModel:
    """A small one whose signals are not neutral, with interventions."""
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "d_model": 16, "n_heads": 2, "max_seq_len": 16} | fields
    built = build(name, **shape)
    add_noise(built, 0)
    intervene(built, texts)
    return built.eval()


def seen(built: LanguageModel, pattern: str) -> dict[str, Tensor]:
    recording = Recording(pattern)
    with torch.no_grad():
        built(IDS, recording)
    return recording.seen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "control.gain",
        "=shuffled",
        "control.gain=mixed",
        "x=neutral",
        "x=neutral:",
        "x=neutral:nan",
        "x=scaled:inf",
        "=scaled:1",
    ],
)
def test_what_is_no_intervention_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=r"train\.interventions: .*write PATTERN=neutral:NUMBER, PATTERN=scaled:NUMBER or .*shuffled"
    ):
        TrainConfig(interventions=(text,))


def test_sources_are_earlier_spread_evenly_and_the_same_for_every_length() -> None:
    source_T, place_T = earlier_positions(4000), torch.arange(4000)
    assert source_T[0] == 0 and (source_T[1:] < place_T[1:]).all()
    assert torch.equal(earlier_positions(77), source_T[:77])
    shares = (source_T[200:] + 0.5) / place_T[200:]
    counts = torch.histc(shares, 10, 0, 1) / len(shares)
    assert (counts - 0.1).abs().max() < 0.02


def test_among_those_present_signals_come_from_those_present() -> None:
    signal_BT = torch.arange(40.0).repeat(2, 1) + 1
    present_BT = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.4
    moved_BT = shuffled(signal_BT * present_BT, present_BT)
    assert (moved_BT[present_BT] > 0).all()
    for row in range(2):
        places = present_BT[row].nonzero()[:, 0]
        assert moved_BT[row, places[0]] == places[0] + 1  # nobody was there before
        moved = moved_BT[row, places] - 1 < places
        assert moved.float().mean() > 0.7


def test_a_held_signal_is_neutral_in_training_and_evaluation() -> None:
    built = model("ncn", "control.gain=neutral:1.0")
    assert torch.equal(seen(built, "control.gain")["control.gain"], torch.ones(2, 13, 6))
    assert (seen(model("ncn"), "control.gain")["control.gain"] != 1).any()
    losses = TrainingLoss(built.train())(IDS)
    assert losses.statistics["signal/gain/mean"] == 1 and losses.statistics["signal/gate/variance"] > 0
    losses.cross_entropy.backward()
    assert all(p.grad is not None for p in built.parameters())  # what several processes need


def test_a_scaled_signal_is_a_multiple_and_what_is_hidden_stays_hidden() -> None:
    plain, halved = model("ncn"), model("ncn", "control.gain=scaled:0.5", "steps.0.attn.scores=scaled:0")
    assert torch.equal(seen(halved, "control.gain")["control.gain"], seen(plain, "control.gain")["control.gain"] / 2)
    scores = seen(halved, "steps.0.attn.scores")["steps.0.attn.scores"]
    assert scores.isneginf().any() and (scores[~scores.isneginf()] == 0).all()


def test_a_shuffled_signal_is_an_earlier_tokens_and_the_rest_of_the_model_hears_it() -> None:
    plain, moved = model("ncn"), model("ncn", "control.gate=shuffled")
    before, after = (seen(one, "control.gate")["control.gate"] for one in (plain, moved))
    assert torch.equal(after, before[:, earlier_positions(13)])
    assert not torch.equal(after[:, 2:], before[:, 2:])
    with torch.no_grad():
        assert not torch.allclose(plain(IDS).logits, moved(IDS).logits)


def test_where_few_tokens_pass_a_tap_those_exchange_their_signals() -> None:
    shape = {"n_slots": 4, "n_passes": 2, "capacities": (1.0, 0.5), "burst": 1}
    tap, who = "steps.2.mlp.out", "steps.2.router.taking"
    plain, moved = model("mor", **shape), model("mor", f"{tap}=shuffled", **shape)
    taking_BT = seen(plain, who)[who]
    before, after = seen(plain, tap)[tap], seen(moved, tap)[tap]
    assert 0 < taking_BT.float().mean() < 1 and (before[~taking_BT] == 0).all()
    assert torch.equal(after[taking_BT], shuffled(before, taking_BT)[taking_BT])
    assert (after[taking_BT].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("text", ["steps.*.attn.out=shuffled", "steps.*.mlp.out=neutral:0.5"])
def test_a_changed_model_is_certified_as_it_computes(text: str) -> None:
    found = certify(model("gpt", text, n_blocks=1), 30, 12, trial_seconds=0)
    assert found.causal and found.causal_in_training and all(check.passed for check in found.checks)
    names = {check.name for check in found.checks}
    assert ("cached_decoding" in names) == ("neutral" in text)
    assert any("cached decoding left out" in note for note in found.notes) == ("shuffled" in text)


def test_a_signal_of_a_later_token_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(n_tokens: int, device: Any = "cpu") -> Tensor:
        return (torch.arange(n_tokens) + 1).clamp(max=n_tokens - 1)

    monkeypatch.setattr(interventions, "earlier_positions", later)
    assert not certify(model("gpt", "steps.0.mlp.out=shuffled", n_blocks=2), 30, 12, trial_seconds=0).causal


def test_compiled_code_computes_the_same() -> None:
    built = model("ncn", "control.gain=shuffled", "control.precision=neutral:1.0", n_blocks=1).train()
    loss = TrainingLoss(built)
    found = []
    for module in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        built.zero_grad()
        value = module(IDS).cross_entropy
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in built.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1])


def test_no_tap_of_that_name_lists_near_ones() -> None:
    with pytest.raises(InputError, match=r"train\.interventions: tap control\.gian: no such tap; near: .*gain"):
        check_interventions(model("ncn").config, ["control.gian=shuffled"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("readout.norm=neutral:0", "is of the read-out"),
        ("steps.0.attn.pattern=shuffled", r"has shape \(B, 2, T, T\); only what each token has"),
    ],
)
def test_taps_at_which_it_cannot_be_done_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_interventions(model("ncn").config, [text])


def test_documents_that_do_not_see_each_other_exchange_no_signals(tiny: RunConfig) -> None:
    changed = replace(tiny.train, interventions=("steps.0.mlp.out=shuffled",))
    with pytest.raises(InputError, match=r"text\.document_mask: a shuffled signal"):
        replace(tiny, text=TextConfig(tokenizer="bytes", document_mask=True), train=changed)


def test_other_taps_see_what_the_model_goes_on_with() -> None:
    heard: list[str] = []

    class Listener:
        def __call__(self, site: str, tensor: Tensor) -> Tensor:
            heard.append(f"{site} {tensor.flatten()[0]:g}")
            return tensor

        def at(self, step: int) -> Listener:
            return self

        def wants(self, site: str) -> bool:
            return site == "mlp.post"

    taps = Interventions({"steps.1.gate": (read_intervention("*=neutral:3"),)}).before(Listener())
    taps("gate", torch.zeros(1, 1))
    taps.at(1)("gate", torch.zeros(1, 1))
    assert heard == ["gate 0", "gate 3"]
    assert taps.at(1).wants("gate") and taps.at(1).wants("mlp.post") and not taps.wants("gate")


def test_a_run_trains_and_evaluates_with_them_and_so_does_its_loaded_model(
    start: Callable[..., Any], tiny: RunConfig
) -> None:
    changed = replace(tiny.train, interventions=("steps.*.attn.out=shuffled",))
    run, listener = start(tiny, steps=6, train=changed)
    plain, _ = start(tiny, name="plain", steps=6)
    assert any("samples      none: a shuffled signal" in line for line in listener.plans)
    assert not run.samples() and plain.samples()
    measured, other = run.metrics()[-1]["val/loss"], plain.metrics()[-1]["val/loss"]
    assert measured != other and run.metrics()[0]["train/loss"] != plain.metrics()[0]["train/loss"]
    loaded = load(run.path)
    text = prepare(tiny.corpus, tiny.text)
    windows, lengths = list(validation_windows(text.val, 32, 512)), byte_lengths(text.tokenizer)
    assert held_out_loss(loaded, windows, lengths).loss == pytest.approx(measured, rel=1e-6)
    without = type(loaded)(loaded.config)
    without.load_state_dict(loaded.state_dict())
    assert abs(held_out_loss(without, windows, lengths).loss - measured) > 1e-4
    assert "Signals were changed" in render([run]) and "Signals were changed" not in render([plain])
    with pytest.raises(InputError, match=r"train\.interventions: no cache and so no samples"):
        continue_text(loaded, text.tokenizer, "a", 4, Sampling())
