"""A scan names the words that a step raised and lowered, at the token and the step where it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from homunculi.experiments.scan import scan
from homunculi.experiments.word_tracing import LEAST, MOVED
from homunculi.instruments.hooks import run_with_cache
from homunculi.models import build
from homunculi.runs.scans import scan_to_json
from homunculi.text.tokenizers import ByteTokenizer
from tests.instruments.planted_words import Planted

TEXT = "a dog ran"
IDS = [256, *TEXT.encode()]


def test_planted_words_are_named_at_every_token_with_their_exact_changes() -> None:
    model = Planted(30.0, 24.0, n_words=257, words=(ord("X"), ord("Y"))).eval()
    found = scan(model, ByteTokenizer(), TEXT)
    _, seen = run_with_cache(model, IDS, "*")
    states = [seen[name] for name in ("embed", "steps.0.resid_post", "steps.1.resid_post")]
    p_3TV = [model.readout(state)[0].softmax(-1).detach().numpy() for state in states]
    first, second = found.lens
    for t, token in enumerate(found.tokens):
        name = "⟨end⟩" if t == 0 else token.text
        (raised, up), *_ = first.up[t]
        assert raised == "X" and up > 0.5
        assert up == pytest.approx(p_3TV[1][t, ord("X")] - p_3TV[0][t, ord("X")], abs=1e-5)
        assert first.down[t][0][0] == name
        assert second.up[t][0] == ("Y", pytest.approx(p_3TV[2][t, ord("Y")] - p_3TV[1][t, ord("Y")], abs=1e-5))
        assert second.down[t][0] == ("X", pytest.approx(p_3TV[2][t, ord("X")] - p_3TV[1][t, ord("X")], abs=1e-5))
    panel = found.panel("words moved")
    assert panel is not None and panel.rows == ("layer 1", "layer 2")
    np.testing.assert_allclose(panel.values[0], np.abs(p_3TV[1] - p_3TV[0]).sum(-1) / 2, atol=1e-5)


def test_a_model_whose_steps_do_nothing_raises_and_lowers_nothing() -> None:
    found = scan(Planted(0.0, 0.0, n_words=257).eval(), ByteTokenizer(), TEXT)
    assert all(not words for lens in found.lens for rows in (lens.up, lens.down) for words in rows)
    panel = found.panel("words moved")
    assert panel is not None and not panel.values.any()


def test_any_model_with_steps_is_traced_in_few_words_that_add_up() -> None:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=257, d_model=32, n_heads=2, n_blocks=2, max_seq_len=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = scan(model, ByteTokenizer(), TEXT)
    for lens in found.lens:
        for up, down in zip(lens.up, lens.down, strict=True):
            assert len(up) <= MOVED and len(down) <= MOVED and up + down
            assert [change for _, change in up] == sorted((change for _, change in up), reverse=True)
            assert all(change > LEAST for _, change in up) and all(change < -LEAST for _, change in down)
    said = json.dumps(scan_to_json(found)["lens"], ensure_ascii=False)
    assert len(said.encode()) < 400 * len(found.lens) * len(found.tokens)


def test_tokens_that_skip_a_pass_have_no_word_moved_by_it() -> None:
    torch.manual_seed(0)
    model = build("mor", vocab_size=257, d_model=32, n_heads=2, max_seq_len=32, burst=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    _, seen = run_with_cache(model, IDS, "steps.*.router.taking")
    found = scan(model, ByteTokenizer(), TEXT)
    panel = found.panel("words moved")
    assert panel is not None and seen
    skipped = 0
    for tap, taking in seen.items():
        step = int(tap.split(".")[1])
        place = [lens.step for lens in found.lens].index(step)
        for t in np.flatnonzero(~taking[0].bool().numpy()):
            assert found.lens[place].up[t] == found.lens[place].down[t] == () and np.isnan(panel.values[place, t])
            skipped += 1
    assert skipped > 0
