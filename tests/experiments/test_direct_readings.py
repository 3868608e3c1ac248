"""The claim about readable states says what made-up readings deserve; the benchmark measures what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.readings import batches, measure, plain, read, side_of, spread, without_context
from homunculi.cli.recipes import configured
from homunculi.errors import InputError
from homunculi.evals.loss import held_out_loss
from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.direct_readings import readings, reads_as_words
from homunculi.experiments.claims.evidence import Evidence, Finding
from homunculi.models import build

FALLING = [4.0, 2.4, 2.1, 1.9]
RULE = reads_as_words("python -m benchmarks.readings")


def side(name: str, losses: list[float], n: int = 5, spread: float = 0.01) -> dict[str, Any]:
    noise = np.random.default_rng(len(name)).normal(0, spread, (n, len(losses)))
    rows = (np.array(losses) + noise).tolist()
    runs = [{"seed": i, "bpb": row, "kept": [0.1] * (len(row) - 1) + [1.0]} for i, row in enumerate(rows)]
    return {"name": name, "runs": runs}


def judged(*sides: dict[str, Any], lens: list[float] | None = None) -> Finding:
    n = len(sides[0]["runs"])
    control = side("gpt", lens or [5.0, 3.5, 2.6, 1.8], n)
    return RULE(Evidence({}, {"control": "gpt", "without_context": {"bpb": 3.0}, "sides": [*sides, control]}))


@pytest.mark.parametrize(
    ("losses", "n", "verdict"),
    [
        (FALLING, 5, "supported"),
        (FALLING, 4, "inconclusive"),  # a first look
        ([4.0, 3.4, 2.1, 1.9], 5, "refuted"),  # a state between is worse than no context
        ([4.0, 2.1, 2.4, 1.9], 5, "refuted"),  # a step adds loss
        ([4.0, 2.4, 2.4, 1.9], 5, "inconclusive"),  # a step does nothing
        ([2.0, 2.4, 2.1, 1.9], 5, "refuted"),  # the first step loses what the token itself said
    ],
)
def test_states_are_judged_one_by_one(losses: list[float], n: int, verdict: str) -> None:
    assert judged(side("maps", losses, n), side("dense", FALLING, n)).verdict == verdict


def test_what_decides_is_the_weakest_state_between_and_the_lens_is_told_beside() -> None:
    found = judged(side("maps", FALLING), side("dense", [4.0, 2.8, 2.1, 1.9]))
    assert found.difference == pytest.approx(0.2, abs=0.02) and found.n == 5
    assert found.low is not None and 0 < found.low < 0.2
    assert "gpt, by a lens, does not throughout" in found.reason
    assert "so does gpt, by a lens" in judged(side("maps", FALLING), lens=FALLING).reason
    row = found.figures["bits/byte after each step of dense"]
    assert [float(x) for x in row.split(" → ")] == pytest.approx([4.0, 2.8, 2.1, 1.9], abs=0.02)


def test_the_states_that_fail_and_the_sides_that_do_not_are_named() -> None:
    found = judged(side("maps", [4.0, 3.4, 3.5, 1.9]), side("dense", FALLING))
    assert "maps: worse than a reading without context after step 1, 2 and more loss than before" in found.reason
    assert "than before after step 2;" in found.reason
    assert "dense read as words throughout" in found.reason
    found = judged(side("maps", [4.0, 2.4, 2.4, 1.9]), side("dense", FALLING))
    assert found.reason.startswith("maps: no fall of the loss shown at step 2;")


def test_runs_that_diverged_and_too_few_decide_nothing() -> None:
    lost = side("maps", FALLING, 6)
    lost["runs"][0] = {"seed": 0, "diverged": "at step 3"}
    found = judged(lost)
    assert found.verdict == "inconclusive" and "runs of maps diverged" in found.reason
    assert judged(side("maps", FALLING, 1)).verdict == "inconclusive"
    assert "has a state between" in judged(side("maps", [4.0, 1.9])).reason


def test_the_claim_reads_its_file_and_names_the_command_without_it(tmp_path: Path) -> None:
    claim = find("vocab-readable")
    assert claim.rule is not None and claim.count is not None and not claim.needs
    found = claim.rule(Evidence({}, claim.count(tmp_path / "claims")))
    assert found.verdict == "not run" and "python -m benchmarks.readings" in found.reason
    (tmp_path / "results").mkdir()
    kept = {"control": "gpt", "without_context": {"bpb": 3.0}, "sides": [side("maps", FALLING), side("gpt", FALLING)]}
    (tmp_path / "results" / "readings.json").write_text(json.dumps(kept | {"command": "…"}))
    assert claim.rule(Evidence({}, claim.count(tmp_path / "claims"))).verdict == "supported"
    (tmp_path / "results" / "readings.json").write_text("{}")
    assert readings("readings")(tmp_path / "claims") == {} == readings("readings")(None)


# The benchmark.


def test_losses_are_those_of_all_tokens_together_and_the_last_is_the_models() -> None:
    torch.manual_seed(0)
    model = build("vocab_dense_memory", vocab_size=40, n_steps=2, d_memory=8, d_mlp=8, max_seq_len=16)
    windows = [*torch.randint(0, 40, (5, 16)).numpy(), np.arange(7)]
    bytes_V = np.arange(40) % 4 + 1
    for separator in (None, 0):
        found = read(model, batches(windows), bytes_V, separator)
        expected = held_out_loss(model, windows, bytes_V, separator=separator)
        assert found["nats"][-1] == pytest.approx(expected.loss, rel=1e-5)
        assert found["bpb"][-1] == pytest.approx(expected.bits_per_byte, rel=1e-5)
        assert len(found["bpb"]) == 3 and found["kept"][-1] == 1


def test_no_fixed_distribution_is_better_than_the_reading_without_context() -> None:
    rows = [np.array([[9, 0, 1, 0, 2]]), np.array([[9, 0, 1]])]  # 0 three times, 1 twice, 2 once
    found = without_context(rows, np.ones(10, dtype=int))
    entropy = -(math.log(1 / 2) / 2 + math.log(1 / 3) / 3 + math.log(1 / 6) / 6)
    assert found["nats"] == pytest.approx(entropy, abs=1e-5)
    assert found["bpb"] == pytest.approx(entropy / math.log(2), abs=1e-5)


def test_sides_are_trained_and_read_and_each_run_has_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = ["corpus=stories?n_documents=40&n_val_documents=10", "text.val_corpus=", "text.tokenizer=bytes", "steps=3"]
    common += ["batch_tokens=64", "model.max_seq_len=16", "device=cpu", "precision=float32"]
    sides = ["vocabulary:low_rank;model.n_steps=2", "three=vocabulary:low_rank;model.n_steps=3"]
    found = measure(sides, "vocabulary:gpt;model.n_blocks=1;model.d_model=16", common, 2, 200)
    assert [one["name"] for one in found["sides"]] == ["low_rank", "three", "gpt"] and found["control"] == "gpt"
    assert [len(run["bpb"]) for one in found["sides"] for run in one["runs"]] == [3, 3, 4, 4, 2, 2]
    losses = [run["nats"][-1] for run in found["sides"][0]["runs"]]
    assert losses[0] != losses[1] and all(0 < loss < 8 for loss in losses)
    text = spread(found)
    assert json.loads(text) == found and sum('"seed"' in line for line in text.splitlines()) == 6
    with pytest.raises(InputError, match="need names of their own"):
        measure([sides[0], sides[0]], "vocabulary:gpt", common, 2, 200)


def test_sides_are_named_and_a_run_is_evaluated_as_little_as_can_be() -> None:
    assert side_of("vocabulary:gpt;lr=1") == ("gpt", "vocabulary:gpt", ["lr=1"])
    assert side_of("own=vocabulary:gpt") == ("own", "vocabulary:gpt", [])
    config = plain(configured("vocabulary:gpt", ["steps=7"])[0])
    assert config.steps == 7 and config.eval_every == 0 and config.train.eval_tokens == config.model.max_seq_len
