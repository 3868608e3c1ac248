"""Sinks that were planted are found: which token, from which step on, how strong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.instruments.sinks import MEASURES, drawn_by, measure
from homunculi.models import build
from homunculi.runs.measures import Measurement

N_STEPS, T = 6, 64
SHAPE = {"vocab_size": 90, "d_model": 32, "n_blocks": N_STEPS, "n_heads": 4, "max_seq_len": T}
PRIMARY = {(0, step): 6.0 for step in range(1, N_STEPS)}


def untrained() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("gpt", **SHAPE).eval()


def some_ids() -> torch.Tensor:
    return torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(row))[:T] for row in range(3)])


def planted(scores: Mapping[tuple[int, int], float], turned: Mapping[int, range], **known: object) -> Measurement:
    """A forward with scores added to keys, by (position, step), and states turned to that of position 0 at steps."""

    def attract(tensor: torch.Tensor, name: str) -> torch.Tensor:
        more = torch.zeros(T)
        for (position, step), extra in scores.items():
            more[position] += extra * (step == int(name.split(".")[1]))
        return tensor + more

    def turn(tensor: torch.Tensor, name: str) -> torch.Tensor:
        tensor = tensor.clone()
        for position, steps in turned.items():
            if int(name.split(".")[1]) in steps:
                mean = tensor[:, 1:].mean(1)
                tensor[:, position] = mean + 2 * (tensor[:, 0] - mean)
        return tensor

    model, ids_BT = untrained(), some_ids()
    ids_BT[:, 20] = 85  # a word that stands nowhere else
    hooks = {"steps.*.attn.scores": attract, "steps.*.resid_pre": turn}
    recording = Recording("steps.*.resid_pre", "steps.*.attn.pattern", others=hooks)
    with torch.no_grad():
        output = model(ids_BT, recording)
    found = measure(Observation(model, ids_BT, recording.seen, output.logits, **known))
    assert found is not None
    return found


def row(found: Measurement, start: str) -> np.ndarray:
    (number,) = [i for i, name in enumerate(MEASURES) if name.startswith(start)]
    return found.values["sinks"][number]


def test_a_primary_and_a_later_secondary_sink_are_told_apart() -> None:
    late = {(20, step): 5.0 for step in (3, 4)}
    found = planted(PRIMARY | late, {20: range(3, 5)}, pieces=tuple(f"w{i}" for i in range(90)))
    assert row(found, "rows with a primary").tolist() == [0, 1, 1, 1, 1, 1]
    assert row(found, "share of heads").tolist() == [0, 1, 1, 1, 1, 1]
    per_100 = 100 / T
    assert row(found, "secondary sinks in") == pytest.approx([0, 0, 0, per_100, per_100, 0])
    assert row(found, "secondary sinks that arise") == pytest.approx([0, 0, 0, per_100, 0, 0])
    assert row(found, "others that draw").max() == 0
    assert found.labels["secondary_token"][0] == "w85 ×3"
    assert found.values["secondary_by_token"][0].tolist() == [0, 0, 0, 1, 1, 0]
    assert found.values["secondary_by_token"][1:].max() == 0
    drawing = found.values["by_position"]
    assert np.nanargmax(drawing[2]) == 0 and set(np.argsort(-np.nan_to_num(drawing[3]))[:2]) == {0, 20}
    assert row(found, "share of attention on the primary")[3] < row(found, "share of attention on the primary")[2]


def test_attention_alone_or_a_state_alone_is_no_secondary_sink() -> None:
    attended = planted(PRIMARY | {(20, 3): 5.0, (20, 4): 5.0}, {})
    assert row(attended, "secondary sinks in").max() == 0
    assert row(attended, "others that draw") == pytest.approx([0, 0, 0, 100 / T, 100 / T, 0])
    assert "secondary_by_token" not in attended.values
    turned = planted(PRIMARY, {20: range(3, 5)})
    assert row(turned, "secondary sinks in").max() == 0


def test_what_begins_with_the_primary_sink_or_stays_for_most_of_the_depth_is_not_secondary() -> None:
    scores = PRIMARY | {(20, step): 5.0 for step in range(1, 4)}
    with_it = planted(scores, {20: range(1, 4)})
    assert row(with_it, "secondary sinks in").max() == 0
    scores = PRIMARY | {(20, step): 5.0 for step in range(2, 6)}
    for_long = planted(scores, {20: range(2, 6)})
    assert row(for_long, "secondary sinks in").max() == 0


def test_without_a_primary_sink_there_is_no_secondary_one() -> None:
    found = planted({(20, 3): 6.0, (20, 4): 6.0}, {20: range(3, 5)})
    assert row(found, "secondary sinks in").max() == 0
    assert found.notes[0].startswith("0 of 3 rows")


def test_the_share_grows_with_what_was_planted() -> None:
    shares = []
    for extra in (3.0, 4.0, 5.0, 6.0):
        found = planted(PRIMARY | {(20, step): extra for step in (3, 4)}, {20: range(3, 5)})
        shares.append(float(found.values["by_position"][3, 20]))
    assert shares == sorted(shares) and shares[-1] > 2 * shares[0]


def test_shares_are_those_of_the_pattern() -> None:
    even_TS = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    pattern_TS = 0.6 * even_TS
    pattern_TS[:, 0] += 0.4
    drawn = drawn_by(pattern_TS.expand(2, 3, T, T))
    even = float((1 / torch.arange(10, T + 1)).mean())  # of queries more than T / 8 tokens on
    assert drawn.share_BS[:, 0].tolist() == pytest.approx([0.4 + 0.6 * even] * 2, rel=1e-5)
    assert drawn.even_BS[:, 0].tolist() == pytest.approx([even] * 2, rel=1e-5)
    assert drawn.share_BHS[0, 0, 5] == pytest.approx(0.6 / torch.arange(15, T + 1).float().reciprocal().mean() ** -1)
    assert torch.isnan(drawn.share_BS[:, -8:]).all()


def test_a_head_that_gives_a_sink_all_its_weight_is_no_head_that_sees_nothing_else() -> None:
    all_TS = torch.zeros(T, T)
    all_TS[:, 0] = 1.0
    drawn = drawn_by(all_TS.expand(1, 2, T, T))
    assert drawn.share_BS[0, 0] == 1.0
    assert drawn.times[0, 0] == pytest.approx(1 / float((1 / torch.arange(10, T + 1)).mean()), rel=1e-5)


def test_local_attention_makes_no_sink() -> None:
    near_TS = torch.ones(T, T).tril().triu(-4)
    times_BS = drawn_by((near_TS / near_TS.sum(-1, keepdim=True)).expand(1, 2, T, T)).times
    assert not (times_BS > 1).any()


def test_an_untrained_model_has_none() -> None:
    found = look(untrained(), some_ids(), ["sinks"])["sinks"]
    for start in ("rows with", "share of heads", "secondary sinks in", "others that draw"):
        assert row(found, start).max() == 0, start
    assert row(found, "the same, times") == pytest.approx(1.0, abs=0.4)
