"""`homunculi claims` as a person types it: the table, one claim in full, running one, and bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments import certifying
from homunculi.experiments.claims import running, store
from homunculi.experiments.claims.catalogue import claims
from homunculi.experiments.claims.evidence import Finding
from tests.experiments.inside import Inside
from tests.experiments.planted import around, depth, part, put_record, skill, stored

Cli = Callable[..., Any]
CLAIM = "ncn-plasticity"
TINY = [
    *("size=small", "steps=8", "batch_tokens=64", "train.eval_tokens=256", "device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.d_control=8", "model.max_seq_len=16"),
    *("text.tokenizer=bytes", "corpus=stories?n_documents=40&n_val_documents=10"),
]
QUICK = ["--no-tune", "--no-baselines", "--at-once", "1"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one supported claim, which calls itself something else."""
    ends = {"off": around(1.0), "own": around(0.95), "shuffled": around(1.0)}
    store.write(tmp_path / "kept", stored(CLAIM, {"main": part(ends)}), Finding("refuted", "it says"))
    return tmp_path / "kept"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Runs in this process, certificates taken for granted."""
    launch = Inside()
    causal = {"causal": True, "causal_in_training": True, "checks": []}
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(certifying, "make_certificate", lambda *model: dict(causal))
    whole = running.run_together
    monkeypatch.setattr(running, "run_together", lambda asked, resolve, board: whole(asked, resolve, board, launch))
    return launch


def test_the_table_has_every_claim_with_its_verdict(cli: Cli, results: Path) -> None:
    done = cli("claims", "--results", results)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["id", "verdict", "difference", "n", "claim"]
    rows = {line.split()[0]: line for line in lines if line and not line.startswith(" ")}
    assert {claim.id for claim in claims()} < set(rows)
    assert "supported" in rows[CLAIM] and "bits/byte  5  a model learns" in rows[CLAIM] and "-0.0" in rows[CLAIM]
    below = lines[lines.index(rows[CLAIM]) + 1 : lines.index(rows[CLAIM]) + 3]
    assert "own ends below off" in below[0] and "at small" in below[0] and "bits/byte of shuffled 1." in below[1]
    assert "supported" in rows["ncn-overhead"] and "1.562 %" in rows["ncn-overhead"]
    assert "not run" in rows["vocab-rank8"]
    assert "    needs the verb mind: the battery of theory of mind" in lines
    assert lines[-1] == f"{len(claims())} claims: {len(claims()) - 2} not run, 2 supported"


def test_the_json_object_has_a_row_for_each(cli: Cli, results: Path) -> None:
    done = cli("claims", "--results", results, "--json")
    rows = {row["id"]: row for row in json.loads(done.out)["claims"]}
    assert list(rows) == [claim.id for claim in claims()]
    for row in rows.values():
        assert list(row)[:2] == ["id", "verdict"]
        assert {"difference", "low", "high", "n", "figures", "claim", "control", "reason", "needs"} <= set(row)
    found = rows[CLAIM]
    assert found["verdict"] == "supported" and found["low"] < found["difference"] < found["high"] < 0
    assert found["n"] == 5 and found["figures"]["bits/byte of own"] < 1 and found["unit"] == "bits/byte"
    assert rows["ncn-kv"]["verdict"] == "not run" and rows["ncn-kv"]["difference"] is None


def test_without_results_everything_is_not_run_but_what_is_counted(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = json.loads(cli("claims", "--json").out)["claims"]
    assert {row["id"] for row in rows if row["verdict"] != "not run"} == {"ncn-overhead"}
    assert not list(tmp_path.iterdir())


def test_results_lie_in_the_checkout_or_beside_the_runs(
    cli: Cli, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def verdict() -> str:
        done = cli("claims", CLAIM, "--show", "--json")
        return str(json.loads(done.out)["claims"][0]["verdict"])

    assert verdict() == "not run"
    (tmp_path / "runs").mkdir()
    results.rename(tmp_path / "runs" / "claims")
    assert verdict() == "supported"
    (tmp_path / "benchmarks" / "claims").mkdir(parents=True)
    assert verdict() == "not run"


def test_figures_of_records_beside_the_results_are_printed_though_nothing_was_run(cli: Cli, tmp_path: Path) -> None:
    chosen = {"rho": None, "low": None, "high": None, "n": 0}
    row = depth("homunculi", "entity_tracking", [1, 2], {1: 0.25, 3: 0.75}, chosen=chosen)
    put_record(tmp_path / "kept", "skills_depth", {"depth": [row]})
    scores = [skill("homunculi", "recall", [0.75] * 3), skill("filled-temporal", "recall", [0.5] * 3)]
    put_record(tmp_path / "kept", "skills_regions", {"scores": scores})
    gain, where = "temporal on its probe tasks, 1 of 3 (accuracy, 3 seeds)", "homunculi on entity_tracking at 4"
    for words in ([], ["homunculi-depth", "homunculi-regions", "--show"]):
        done = cli("claims", *words, "--results", tmp_path / "kept")
        assert done.code == 0, done.err
        assert f"    {gain} 0.25 (0.25 … 0.25)\n" in done.out.replace(" " * 16, "    ")
        assert f"{where} (0 of 5 seeds) undefined, nothing varies; accuracy of {where}, own depths" in done.out
    printed = json.loads(cli("claims", "--results", tmp_path / "kept", "--json").out)["claims"]
    rows = {one["id"]: one for one in printed}
    assert rows["homunculi-regions"]["figures"] == {gain: [0.25, 0.25, 0.25]}
    assert rows["homunculi-regions"]["verdict"] == rows["homunculi-depth"]["verdict"] == "not run"
    assert rows["homunculi-depth"]["figures"][f"accuracy of {where}, 3 passes forced (5 seeds)"] == 0.75


def test_one_claim_in_full_without_running_it(cli: Cli, results: Path, inside: Inside) -> None:
    done = cli("claims", CLAIM, "--show", "--results", results)
    assert done.code == 0 and not inside.folders
    for word in ("control", "the same factors handed to other blocks", "because", "own ends below off", "size=medium"):
        assert word in done.out
    assert "own=ncn:medium;model.n_blocks=5;model.plasticity=gain;train.plasticity=own" in done.out
    assert "15 runs and 9 trials" in done.out


def test_a_claim_is_run_stored_and_shown(cli: Cli, inside: Inside, tmp_path: Path) -> None:
    words = ["claims", CLAIM, *TINY, "--seeds", "2", *QUICK, "--folder", tmp_path / "c", "--results", tmp_path / "kept"]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["claims"]
    assert (row["id"], row["verdict"], row["n"], row["size"]) == (CLAIM, "inconclusive", 2, "small")
    assert row["low"] <= row["difference"] <= row["high"] and len(inside.folders) == 6
    assert "own, shuffled with off" in done.err and "off-s0 done" in done.err
    again = cli(*words)
    assert len(inside.folders) == 6 and "has all that is asked" in again.err
    assert again.out.splitlines()[1].startswith(f"{CLAIM}  inconclusive")
    kept = tmp_path / "kept" / f"{CLAIM}.json"
    kept.unlink()
    exported = cli("claims", CLAIM, "--export", tmp_path / "c", "--results", tmp_path / "kept", "--json")
    assert exported.code == 0 and json.loads(exported.out)["claims"][0] == row and kept.exists()


def test_a_side_that_is_refused_has_its_own_exit_code(
    cli: Cli, inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [{"name": "token_edits", "passed": False, "value": 1.0, "limit": 1e-9}]
    leaky = {"causal": False, "causal_in_training": False, "checks": failed}
    monkeypatch.setattr(certifying, "make_certificate", lambda *model: dict(leaky))
    words = ["claims", CLAIM, *TINY, "--seeds", "2", *QUICK, "--folder", tmp_path / "c", "--results", tmp_path / "kept"]
    done = cli(*words)
    assert done.code == 3 and "off: not causal: token_edits" in done.err.splitlines()[-1]
    assert f"{CLAIM}  inconclusive" in done.out and not inside.folders


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ncn-perplexty"], "ncn-perplexty: no such claim; did you mean ncn-perplexity"),
        (["zzz"], "zzz: no such claim; homunculi claims lists all"),
        (["ncn-plasticity", "size=huge"], "size: ncn-plasticity runs at small, medium, not at huge"),
        (["ncn-plasticity", "--sides", "no"], "--sides: ncn-plasticity has no side no"),
        (["ncn-plasticity", "--tune", "a"], "--tune: a"),
        (["ncn-plasticity", "--tune", "1", "--no-tune"], "exclude each other"),
        (["ncn-plasticity", "--seeds", "1"], "--seeds: 1"),
        (["ncn-plasticity", "stepz=3"], "did you mean steps"),
        (["ncn-plasticity", "--export", "nowhere"], "has no comparison.json"),
        (["ncn-plasticity", "ncn-scaling", "--folder", "x"], "go with one ID"),
        (["size=small"], "name the claim"),
        (["--export", "x"], "name the claim"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(cli: Cli, words: list[str], named: str, tmp_path: Path) -> None:
    done = cli("claims", *words, "--results", tmp_path / "kept")
    assert done.code == 2 and done.out == "" and not (tmp_path / "kept").exists()
    (line,) = done.err.strip().splitlines()
    assert line.startswith("homunculi: ") and named in line


def test_a_damaged_result_is_one_line_that_names_it(cli: Cli, results: Path) -> None:
    path = results / f"{CLAIM}.json"
    path.write_text(path.read_text()[:-400])
    done = cli("claims", "--results", results)
    assert done.code == 2 and done.out == "" and len(done.err.strip().splitlines()) == 1
    assert f"{path}: is damaged" in done.err


def test_text_of_a_file_cannot_act_on_a_terminal(cli: Cli, results: Path) -> None:
    path = results / f"{CLAIM}.json"
    found = json.loads(path.read_text())
    side = found["parts"]["main"]["sides"][1]
    side["certificate"] = {"causal": False, "causal_in_training": False, "failed": ["\x1b[2Jgone"]}
    path.write_text(json.dumps(found))
    done = cli("claims", CLAIM, "--show", "--results", results)
    assert done.code == 0 and "\x1b" not in done.out and "⟨1b⟩[2Jgone" in done.out


def test_a_claim_can_be_certified_alone(cli: Cli, inside: Inside, tmp_path: Path) -> None:
    words = ["claims", CLAIM, *TINY, *QUICK, "--folder", tmp_path / "c", "--results", tmp_path / "kept"]
    done = cli(*words, "--certify-only", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["certificates"]
    assert [row["side"] for row in rows] == [f"{CLAIM} {side}" for side in ("off", "own", "shuffled")]
    assert not inside.folders and not (tmp_path / "c").exists() and not (tmp_path / "kept").exists()
    assert len({row["certificate"] for row in rows}) == 1  # how updates are scaled makes no other model
