"""A scan shows what passed, for every architecture: the right token, the right step, blank where nobody took part."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.panels import joined, label_of
from homunculi.experiments.scan import START, scan, tracks_of
from homunculi.experiments.subject import add_noise
from homunculi.instruments.hooks import run_with_cache
from homunculi.models import build, get, names
from homunculi.report.scan import render
from homunculi.runs.scans import Attention, Panel, Scan, Token, scan_from_json, scan_to_json
from homunculi.text.tokenizers import ByteTokenizer

TEXT = "the cat sat"
IDS = [256, *TEXT.encode()]
EXPECTED = {
    "gpt": {"update", "attention entropy"},
    "ncn": {"gain", "precision", "gate"},
    "mor": {"depth", "gate", "score"},
    "homunculi": {
        *("depth", "salience", "forecast", "inhibition", "experts", "halt", "gate", "write"),
        *("dopamine", "acetylcholine", "noradrenaline", "serotonin"),
    },
}


def model(name: str, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(get(name).config_type)}
    shape = {"vocab_size": 257, "max_seq_len": 16}
    small = {"d_model": 32, "n_heads": 2} if "d_model" in known else dict(get(name).variants[0])
    built = build(name, **(small | shape | fields))
    add_noise(built, 0)
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("name", [name for name in names() if not name.endswith("_published")])
def test_any_architecture_is_scanned_and_written_out(name: str) -> None:
    built = model(name)
    found = scan(built, ByteTokenizer(), TEXT, known={"run": "small", "step": 3})
    assert [token.text for token in found.tokens] == [START, *TEXT.replace(" ", "␣")]
    assert EXPECTED.get(name, set()) <= {panel.name for panel in found.panels}
    assert len({panel.name for panel in found.panels}) == len(found.panels)
    back = scan_from_json(scan_to_json(found))
    assert back.run == "small" and back.step == 3 and back.tokens[3].text == "e"
    for panel, read in zip(found.panels, back.panels, strict=True):
        np.testing.assert_allclose(read.values, panel.values, rtol=1e-3)
        assert np.isfinite(panel.values).any(), panel.name
    taps = {tap.name for tap in catalogue(built)}
    looking = [i for i in range(len(built.schedule)) if f"steps.{i}.attn.pattern" in taps]
    assert [a.label for a in found.attention] == [label_of(built.schedule, i) for i in looking]
    assert name.startswith("vocab_") or len(looking) == len(built.schedule)
    for attention in found.attention:
        assert not np.triu(attention.values, 1).any()


@pytest.mark.parametrize("variant", range(len(get("mor").variants)))
def test_panels_have_names_of_their_own_whatever_routes(variant: int) -> None:
    built = model("mor", **({"d_model": 16} | dict(get("mor").variants[variant])))
    found = [panel.name for panel in scan(built, ByteTokenizer(), TEXT).panels]
    assert len(set(found)) == len(found) and "depth" in found
    assert ("control depth" in found) == (built.config.router == "token_choice")


def test_surprisal_is_of_the_token_itself_and_the_lens_of_the_last_layer_is_the_models_answer() -> None:
    built = model("gpt", n_blocks=2)
    found = scan(built, ByteTokenizer(), TEXT)
    logits = built(torch.tensor([IDS])).logits[0]
    expected = -logits.log_softmax(-1)[torch.arange(len(TEXT)), torch.tensor(IDS[1:])]
    said = [token.surprisal for token in found.tokens]
    assert said[0] is None and said[1:] == pytest.approx(expected.tolist(), rel=1e-5)
    last = found.lens[-1]
    assert [words[0][1] for words in last.words] == pytest.approx(logits.softmax(-1).amax(-1).tolist(), rel=1e-5)
    ranks = [int(1 + (logits[t] > logits[t, IDS[t + 1]]).sum()) for t in range(len(TEXT))]
    assert list(last.rank) == [*ranks, None] and found.lens[0].label == "layer 1"


def test_signals_stand_at_their_token_and_layer() -> None:
    built = model("ncn")
    panel = scan(built, ByteTokenizer(), TEXT).panel("gain")
    _, seen = run_with_cache(built, IDS, "control.gain")
    assert panel is not None and panel.neutral == 1.0 and panel.low < 1 < panel.high
    np.testing.assert_allclose(panel.values, seen["control.gain"][0].T.double().numpy())
    assert panel.rows == tuple(f"layer {i + 1}" for i in range(len(built.schedule)))


@pytest.mark.parametrize("name", ["mor", "homunculi"])
def test_tokens_that_skip_a_pass_are_blank_in_it(name: str) -> None:
    built = model(name, burst=0)
    _, seen = run_with_cache(built, IDS, "*")
    taking = {tap: tensor[0].numpy() for tap, tensor in seen.items() if tap.endswith("router.taking")}
    found = scan(built, ByteTokenizer(), TEXT)
    depth, update = found.panel("depth"), found.panel("update")
    assert depth is not None and update is not None
    n_passes = built.config.n_passes
    np.testing.assert_array_equal(depth.values[0], n_passes - len(taking) + sum(taking.values()))
    assert 0 < sum(t.mean() for t in taking.values()) < len(taking)
    for tap, takes in taking.items():
        row = update.rows.index(label_of(built.schedule, int(tap.split(".")[1])))
        np.testing.assert_array_equal(np.isfinite(update.values[row]), takes)
    if name == "homunculi":
        packet, experts = found.panel("dopamine"), found.panel("experts")
        assert packet is not None and np.isfinite(packet.values).all()  # it is told before anybody is left out
        assert experts is not None and experts.rows[0] == "pass 1, expert 1"
        shares = experts.values[: built.config.n_experts]
        np.testing.assert_allclose(shares.sum(0), 1)


def test_steps_that_show_some_tokens_alone_are_left_out_and_it_is_said() -> None:
    built = model("mor_published", max_seq_len=32)
    text = "a text of some length, please"
    found = scan(built, ByteTokenizer(), text)
    assert {panel.values.shape[1] for panel in found.panels} == {len(text) + 1}
    assert any("are left out" in note for note in found.notes) and len(found.lens) < len(built.schedule)
    assert not scan(model("mor"), ByteTokenizer(), TEXT).notes[0].startswith("Steps that show")


def test_changes_are_seen_and_named() -> None:
    built = model("homunculi")
    plain = scan(built, ByteTokenizer(), TEXT)
    held = scan(built, ByteTokenizer(), TEXT, changes=["depth=1", "steps.*.packet.dopamine=neutral:1.0"])
    assert held.changes == ("depth=1", "steps.*.packet.dopamine=neutral:1.0") and not plain.changes
    depth, dopamine = held.panel("depth"), held.panel("dopamine")
    assert depth is not None and (depth.values == 1).all()
    assert dopamine is not None and (dopamine.values == 1).all() and dopamine.low < 1 < dopamine.high
    assert held.tokens[5].surprisal != plain.tokens[5].surprisal
    patched = scan(built, ByteTokenizer(), TEXT, changes=["embed=patched"], patch_text=TEXT[::-1])
    other = scan(built, ByteTokenizer(), TEXT[::-1])
    assert patched.lens[-1].words == other.lens[-1].words


def test_instruments_add_their_measurements() -> None:
    found = scan(model("gpt", n_blocks=2), ByteTokenizer(), TEXT, instruments=["activation"])
    (measured,) = found.measures
    assert measured["instrument"] == "activation" and len(measured["values"]["activation"]) == 4
    with pytest.raises(InputError, match="no such instrument"):
        scan(model("gpt", n_blocks=1), ByteTokenizer(), TEXT, instruments=["sonar"])


def test_texts_that_do_not_fit_are_refused_in_one_line() -> None:
    built = model("gpt", n_blocks=1)
    with pytest.raises(InputError, match="text: is empty"):
        scan(built, ByteTokenizer(), "")
    with pytest.raises(InputError, match="16 tokens and the start are more than the 16 that this model reads"):
        scan(built, ByteTokenizer(), "x" * 16)
    assert len(scan(built, ByteTokenizer(), "x" * 15).tokens) == 16


def test_tracks_are_the_panels_and_surprisal_in_lines() -> None:
    built = model("homunculi")
    names_of, values = tracks_of(built, ByteTokenizer(), TEXT)
    found = scan(built, ByteTokenizer(), TEXT)
    assert len(names_of) == len(values) and values.shape[1] == len(IDS) and len(set(names_of)) == len(names_of)
    np.testing.assert_allclose(values[0, 1:], [token.surprisal for token in found.tokens[1:]], rtol=1e-6)
    panel = found.panel("salience")
    assert panel is not None
    np.testing.assert_array_equal(values[names_of.index("Salience, pass 1")], panel.values[1])


def test_a_scan_leaves_the_mode_of_a_model_alone() -> None:
    built = model("gpt", n_blocks=1, dropout=0.5).train()
    a, b = (scan(built, ByteTokenizer(), TEXT).tokens for _ in range(2))
    assert built.training and a == b


@pytest.mark.parametrize("name", ["mor", "homunculi"])
def test_the_lens_reads_what_the_gate_of_a_pass_leaves(name: str) -> None:
    built = model(name, max_seq_len=32)
    found = scan(built, ByteTokenizer(), TEXT, instruments=["lens"])
    measured = found.measures[0]["values"]["rank"]
    for lens, rank in zip(found.lens, measured, strict=True):
        geometric = np.exp(np.log([one for one in lens.rank if one is not None]).mean())
        assert geometric == pytest.approx(rank, rel=1e-3), lens.label


def test_a_model_that_says_no_numbers_is_scanned_and_read_back() -> None:
    built = model("gpt", n_blocks=2)
    found = scan(built, ByteTokenizer(), TEXT, changes=["steps.*.resid_post=scaled:1e38"])
    back = scan_from_json(json.loads(json.dumps(scan_to_json(found), allow_nan=False)))
    assert {token.surprisal for token in back.tokens} == {None}
    assert set(back.lens[-1].rank) == {None} and set(back.lens[-1].words) == {()}
    assert any("no number" in note for note in back.notes)
    assert "–" in render(found)


def test_ends_of_colours_that_differ_by_little_are_read_back() -> None:
    low, high = 1.0000001, 1.0000002
    panel = Panel("a", "A", "", ("r",), np.array([[low, high]]), low, high)
    tokens = (Token(0, "a", None), Token(1, "b", 1.0))
    back = scan_from_json(scan_to_json(Scan("r", 1, "ab", tokens, (panel,))))
    assert (back.panels[0].low, back.panels[0].high) == (low, high)


def test_attention_of_a_long_text_is_joined_and_then_left_out() -> None:
    one = [Attention(f"steps.{i}.attn.pattern", "layer", np.full((4, 3, 3), i / 10)) for i in range(2)]
    assert joined(one, 72) == (one, ())
    means, notes = joined(one, 71)
    assert [a.values.shape for a in means] == [(1, 3, 3)] * 2 and means[1].values.max() == pytest.approx(0.1)
    assert "mean of its heads" in notes[0]
    assert joined(one, 17)[0] == [] and "left out" in joined(one, 17)[1][0]


def test_instruments_that_a_scan_cannot_feed_are_refused() -> None:
    with pytest.raises(InputError, match="updates: reads an update of the weights"):
        scan(model("gpt"), ByteTokenizer(), TEXT, instruments=["updates"])
    with pytest.raises(InputError, match="patch_text: no change takes from it"):
        scan(model("gpt"), ByteTokenizer(), TEXT, patch_text=TEXT)
