"""Stored results: they add up by side and seed, refuse other plans, and their verdict is not believed but computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError
from homunculi.experiments.claims import store
from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.evidence import Finding
from homunculi.experiments.claims.table import row
from tests.experiments.planted import around, part, run, side, stored

Json = dict[str, Any]
CLAIM = "ncn-plasticity"


def planted(own: float = 0.95, n: int = 5) -> Json:
    return stored(CLAIM, {"main": part({"off": around(1.0, n), "own": around(own, n), "shuffled": around(1.0, n)})})


def put(folder: Path, result: Json) -> Path:
    return store.write(folder, result, Finding("not run", ""))


def test_the_verdict_of_a_file_is_never_believed(tmp_path: Path) -> None:
    """A file that calls itself refuted is supported all the same, and the other way round."""
    for own, verdict in ((0.95, "supported"), (1.05, "refuted"), (1.0002, "inconclusive")):
        path = put(tmp_path, planted(own))
        honest = row(find(CLAIM), tmp_path)
        assert honest.finding.verdict == verdict
        lie = json.loads(path.read_text())
        lie["finding"] = {"verdict": "supported" if verdict == "refuted" else "refuted", "difference": -9.0, "n": 99}
        lie["verdict"] = lie["finding"]["verdict"]
        path.write_text(json.dumps(lie))
        assert row(find(CLAIM), tmp_path).finding == honest.finding


def test_a_file_says_what_was_found_and_reads_back_as_it_was(tmp_path: Path) -> None:
    whole = planted()
    path = store.write(tmp_path, whole, row(find(CLAIM), put(tmp_path, whole).parent).finding)
    written = json.loads(path.read_text())
    assert written["finding"]["verdict"] == "supported" and written["finding"]["n"] == 5
    assert store.read(tmp_path, CLAIM) == whole
    lines = path.read_text().splitlines()
    assert sum('"side": "own"' in line for line in lines) == 5  # a run is a line, so that additions are lines


def test_later_runs_are_added_by_side_and_seed() -> None:
    first, later = planted(n=3), planted(n=5)
    later["parts"]["main"]["runs"] = [one for one in later["parts"]["main"]["runs"] if one["seed"] >= 2]
    for one in later["parts"]["main"]["runs"]:
        one["seconds"] = 7.0
    together = store.merge(first, later, "x.json")["parts"]["main"]
    assert [(one["side"], one["seed"]) for one in together["runs"]] == [
        (name, seed) for name in ("off", "own", "shuffled") for seed in range(5)
    ]
    assert {one["seed"] for one in together["runs"] if one["seconds"] == 7.0} == {3, 4}  # those of old stay


def test_later_sides_are_added() -> None:
    first = stored(CLAIM, {"main": part({"off": around(1.0), "own": around(0.95)})})
    later = stored(CLAIM, {"main": part({"off": around(1.0), "shuffled": around(1.0)})})
    together = store.merge(first, later, "x.json")
    assert [one["name"] for one in together["parts"]["main"]["sides"]] == ["off", "own", "shuffled"]
    assert len(together["parts"]["main"]["runs"]) == 15 and len(together["provenance"]) == 2


def test_a_run_that_diverged_and_then_ended_counts_as_ended() -> None:
    lost = [{"side": "own", "seed": seed, "state": "diverged", "reason": ""} for seed in (4, 5)]
    first = planted(n=4)
    first["parts"]["main"]["failed"] = lost
    together = store.merge(first, planted(n=5), "x.json")["parts"]["main"]
    assert [one["seed"] for one in together["failed"]] == [5]


def change(*keys: Any, to: Any) -> Callable[[Json], None]:
    def apply(result: Json) -> None:
        for key in keys[:-1]:
            result = result[key]
        result[keys[-1]] = to

    return apply


OWN = ("parts", "main", "sides", 1)
OTHER_PLANS = {
    "size is": change("size", to="medium"),
    "common.steps is": change("common", to=["steps=9"]),
    "match is": change("parts", "main", "match", to=["flops"]),
    "data_hash": change("parts", "main", "data", "data_hash", to="another"),
    "recipe of own": change(*OWN, "recipe", to="ncn:medium"),
    "assignments of own.model.d_model": change(*OWN, "assignments", to=["model.d_model=8"]),
    "changes of own.model.d_mlp": change(*OWN, "changes", to={"model.d_mlp": "8"}),
    "config of own.steps": change(*OWN, "config", "steps", to=101),
    "config of own.model.max_seq_len": change(*OWN, "config", "model", "max_seq_len", to=32),
    "lr of own": change(*OWN, "lr", to=0.02),
    "seed_offset of own": change(*OWN, "seed_offset", to=100),
    "the first side": change("parts", "main", "sides", 0, "name", to="of"),
}


@pytest.mark.parametrize("field", OTHER_PLANS)
def test_another_plan_is_refused_with_the_field_that_differs(field: str) -> None:
    other = planted()
    OTHER_PLANS[field](other)
    with pytest.raises(InputError) as refused:
        store.merge(planted(), other, "kept/x.json")
    assert str(refused.value).startswith("kept/x.json: ") and field in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_that_a_later_program_added_are_no_other_plan() -> None:
    later = planted()
    later["parts"]["main"]["sides"][1]["config"]["model"]["new_setting"] = 3
    assert store.merge(planted(), later, "x.json")["parts"]["main"]["sides"] == planted()["parts"]["main"]["sides"]


RUN = ("parts", "main", "runs", 0)
DAMAGE = {
    "another format": change("format", to=2),
    "another claim": change("id", to="ncn-scaling"),
    "no parts": change("parts", to=3),
    "no runs": change("parts", "main", "runs", to=None),
    "an infinite loss": change(*RUN, "val_bpb", to=[1.0, 1.0, float("inf")]),
    "a curve cut short": change(*RUN, "tokens", to=[1, 2]),
    "an empty curve": change(*RUN, "tokens", to=[]),
    "text for a loss": change(*RUN, "val_loss", to=["a", "b", "c"]),
    "a run of nobody": change(*RUN, "side", to="nobody"),
    "a seed that is none": change(*RUN, "seed", to="0"),
    "statistics that are none": change(*RUN, "statistics", to={"x": None}),
    "a side without steps": change(*OWN, "config", to={}),
    "a side's name that leads elsewhere": change(*OWN, "name", to="../own"),
    "no certificate at all": lambda result: result["parts"]["main"]["sides"][0].pop("certificate"),
    "no budget": change(*OWN, "budget", to={"non_embedding_parameters": 0}),
    "a ratio that is none": change(*OWN, "ratios", to={"flops": "1"}),
    "provenance that is none": change("provenance", to=[{"device": 3}]),
    "provenance of text": change("provenance", to=["cpu"]),
    "a failure of nobody": change("parts", "main", "failed", to=[{"side": "x", "seed": 1, "state": "diverged"}]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_that_names_it(damage: str, tmp_path: Path) -> None:
    result = planted()
    DAMAGE[damage](result)
    path = tmp_path / f"{CLAIM}.json"
    path.write_text(json.dumps(result))
    with pytest.raises(InputError) as refused:
        row(find(CLAIM), tmp_path)
    assert str(refused.value).startswith(f"{path}: is damaged (") and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\x00\xff", "[" * 100_000])
def test_a_file_that_is_no_result_is_one_line_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / f"{CLAIM}.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"ncn-plasticity\.json: is damaged"):
        row(find(CLAIM), tmp_path)


def test_a_measurement_that_is_damaged_names_its_file(tmp_path: Path) -> None:
    ends = {name: around(1.0) for name in ("gpt", "ncn", "frozen", "deaf", "shuffled")} | {"ncn": around(0.95)}
    measured = {"leak": {"differences": ["x"] * 20, "whole": 1.0, "prefix": 1.1}}
    put(tmp_path, stored("ncn-perplexity", {"main": part(ends)}, measured=measured))
    with pytest.raises(InputError, match=r"ncn-perplexity\.json: is damaged"):
        row(find("ncn-perplexity"), tmp_path)


def test_the_price_of_the_leak_stands_beside_the_verdict(tmp_path: Path) -> None:
    ends = {name: around(1.0) for name in ("gpt", "ncn", "frozen", "deaf", "shuffled")} | {"ncn": around(0.95)}
    leak = {"differences": [0.01 + 0.001 * (i % 3) for i in range(32)], "whole": 1.5, "prefix": 1.511}
    put(tmp_path, stored("ncn-perplexity", {"main": part(ends)}, measured={"leak": leak}))
    found = row(find("ncn-perplexity"), tmp_path).finding
    price, low, high = found.figures["price of its leak, nats/token"]
    assert found.verdict == "supported" and low < price < high and price == pytest.approx(0.011, abs=0.001)


def test_what_weakens_a_result_is_noted_beside_its_verdict(tmp_path: Path) -> None:
    result = planted()
    put(tmp_path, result)
    assert row(find(CLAIM), tmp_path).notes == ()
    result["parts"]["main"]["factors"] = []
    result["parts"]["main"]["runs"][7]["stream"] = "other batches"
    result["provenance"] = [{"code": "a"}, {"code": "b"}]
    put(tmp_path, result)
    rates, left_out, codes = row(find(CLAIM), tmp_path).notes
    assert "not tuned" in rates and left_out.endswith("steps: 1") and "2 versions" in codes


def test_a_result_without_runs_is_not_run(tmp_path: Path) -> None:
    put(tmp_path, stored(CLAIM, {"main": part({"off": [], "own": []})}))
    assert row(find(CLAIM), tmp_path).finding.verdict == "not run"
    put(tmp_path, stored(CLAIM, {"main": part({"off": [1.0]}, runs=[run("off", 0, 1.0)], sides=[side("off")])}))
    assert row(find(CLAIM), tmp_path).finding.verdict == "inconclusive"
