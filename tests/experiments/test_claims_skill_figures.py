"""Figures from records of skills stand beside a verdict and never change it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments.claims import store
from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.evidence import Finding
from homunculi.experiments.claims.homunculi import PROBES, REGIONS
from homunculi.experiments.claims.skill_figures import UNDEFINED, depths, own_jobs
from homunculi.experiments.claims.table import row
from homunculi.tasks.registry import names
from tests.experiments.planted import around, depth, part, put_record, skill, stored

Json = dict[str, Any]
T_OF_2, T_OF_1 = 4.302652730, 12.70620474  # 0.975 quantiles of Student's t, of that many degrees of freedom
ONE_TASK = own_jobs("whole", {"a": "no-a"}, {"a": ("own",)})


def jobs(**tasks: tuple[list[float], list[float]]) -> Json:
    """Scores of the whole and of the side without `a`, by task."""
    pairs = [(skill("whole", task, of[0]), skill("no-a", task, of[1])) for task, of in tasks.items()]
    return {"scores": [one for pair in pairs for one in pair]}


def battery(gain: float, n: int = 3) -> Json:
    """A record of all probe tasks, on which each region adds as much to what is 0.5 without it; nothing elsewhere."""
    found = []
    for task in (task for tasks in PROBES.values() for task in tasks):
        found.append(skill("homunculi", task, [0.5 + gain] * n))
        found += [skill(f"filled-{name}", task, [0.5 + gain * (task not in PROBES[name])] * n) for name in REGIONS]
    return {"scores": [*found, skill("without-router", "recall", [0.1] * n)], "depth": [], "beyond": []}


def routed() -> Json:
    return {"depth": [depth("homunculi", "entity_tracking", [1, 2], {1: 0.25, 2: 0.375, 3: 0.75})], "scores": []}


def test_a_gain_is_averaged_over_tasks_before_seeds() -> None:
    """Seeds gain 0.1, 0.2 and 0.3, each by the mean of two tasks that go apart: 0.2 ± t · 0.1 / √3."""
    rule = own_jobs("whole", {"a": "no-a"}, {"a": ("one", "two")})
    one, two = ([0.5, 0.6, 0.7], [0.1, 0.6, 0.7]), ([0.3, 0.9, 0.9], [0.5, 0.5, 0.3])
    found = rule(jobs(one=one, two=two))
    assert list(found) == ["a on its probe tasks (accuracy, 3 seeds)"]
    reach = T_OF_2 * 0.1 / 3**0.5
    assert found["a on its probe tasks (accuracy, 3 seeds)"] == pytest.approx([0.2, 0.2 - reach, 0.2 + reach])


def test_a_part_is_specific_by_how_much_more_it_adds_on_its_own_tasks_than_on_all_others() -> None:
    """Own gains 0.4 and 0.2, others' mean gains 0.1 and 0.1: 0.3 and 0.1 more, so 0.2 ± t · 0.1."""
    found = ONE_TASK(jobs(own=([0.9, 0.7], [0.5, 0.5]), x=([0.7, 0.5], [0.5, 0.5]), y=([0.5, 0.7], [0.5, 0.5])))
    more = found["a on its probe tasks more than on others (accuracy, 2 seeds)"]
    assert more == pytest.approx([0.2, 0.2 - T_OF_1 * 0.1, 0.2 + T_OF_1 * 0.1])
    assert found["a on its probe tasks (accuracy, 2 seeds)"][0] == pytest.approx(0.3)


def test_only_seeds_that_both_sides_have_of_all_these_tasks_count_and_the_name_says_how_many() -> None:
    found = ONE_TASK(jobs(own=([0.9, 0.7, 0.2], [0.5, 0.5]), x=([0.7], [0.6])))
    assert list(found) == [
        "a on its probe tasks (accuracy, 2 seeds)",
        "a on its probe tasks more than on others (accuracy, 1 seed)",
    ]
    first, second = found.values()
    assert first[0] == pytest.approx(0.3) and second == pytest.approx(0.4 - 0.1)  # of one seed there is no interval


def test_probe_tasks_that_were_not_measured_are_counted_in_the_name_and_none_says_nothing() -> None:
    rule = own_jobs("whole", {"a": "no-a", "b": "no-b"}, {"a": ("own", "gone"), "b": ("own",)})
    found = rule(jobs(own=([0.9, 0.7], [0.5, 0.5]), gone=([0.5], [])))
    assert list(found) == ["a on its probe tasks, 1 of 2 (accuracy, 2 seeds)"]
    assert rule(jobs(other=([0.5, 0.5], [0.5, 0.5]))) == {}


def test_probe_tasks_are_tasks_and_each_is_one_regions() -> None:
    tasks = [task for of_region in PROBES.values() for task in of_region]
    assert tuple(PROBES) == REGIONS and len(set(tasks)) == len(tasks) and set(tasks) <= set(names())


def test_every_region_is_shown_with_what_it_adds_and_how_specific_that_is(tmp_path: Path) -> None:
    put_record(tmp_path / "claims", "skills_regions", battery(0.25))
    found = row(find("homunculi-regions"), tmp_path / "claims").finding
    assert found.verdict == "not run" and found.difference is None and len(found.figures) == 2 * len(REGIONS)
    for region in REGIONS:
        assert found.figures[f"{region} on its probe tasks (accuracy, 3 seeds)"] == pytest.approx([0.25] * 3)
        more = found.figures[f"{region} on its probe tasks more than on others (accuracy, 3 seeds)"]
        assert more == pytest.approx([0.25] * 3)


@pytest.mark.parametrize(("gone", "verdict"), [(1.05, "supported"), (0.95, "refuted"), (1.0, "inconclusive")])
@pytest.mark.parametrize("gain", [0.4, -0.4])
def test_figures_are_added_to_those_of_runs_and_leave_the_verdict_alone(
    tmp_path: Path, gone: float, verdict: str, gain: float
) -> None:
    results = tmp_path / "claims"
    ends = {"whole": around(1.0)} | {f"no-{name}": around(gone) for name in REGIONS}
    store.write(results, stored("homunculi-regions", {"main": part(ends)}), Finding("not run", ""))
    alone = row(find("homunculi-regions"), results)
    put_record(results, "skills_regions", battery(gain, 5))
    beside = row(find("homunculi-regions"), results)
    assert alone.finding.verdict == verdict
    added = beside.finding.figures.keys() - alone.finding.figures.keys()
    assert len(added) == 2 * len(REGIONS) and all("5 seeds" in name for name in added)
    kept = {name: beside.finding.figures[name] for name in alone.finding.figures}
    assert kept == alone.finding.figures
    changed, unchanged = beside.to_json(), alone.to_json()
    assert changed.pop("figures") != unchanged.pop("figures") and changed == unchanged


def test_depth_shows_whether_it_follows_need_and_what_it_buys(tmp_path: Path) -> None:
    put_record(tmp_path / "claims", "skills_depth", routed())
    found = row(find("homunculi-depth"), tmp_path / "claims").finding
    assert found.verdict == "not run" and "homunculi claims homunculi-depth" in found.reason
    where = "homunculi on entity_tracking at 4"
    assert found.figures == {
        f"passes chosen with steps needed, rank correlation, {where} (5 seeds)": [0.25, 0.125, 0.375],
        f"accuracy of {where}, own depths (5 seeds)": 0.5,
        f"accuracy of {where}, 1 pass forced (5 seeds)": 0.25,
        f"accuracy of {where}, 3 passes forced (5 seeds)": 0.75,
    }


def correlations(*rows: Json) -> Json:
    return {name: value for name, value in depths({"depth": list(rows)}).items() if "correlation" in name}


def test_a_correlation_is_shown_where_depth_is_chosen_and_need_differs() -> None:
    """Not of a loop, which has no choice, nor where every answer needs one step."""
    assert correlations(depth("loop", "t", [1, 2], {1: 0.5, 2: 0.5}, chosen=None)) == {}
    assert correlations(depth("mor", "t", [1], {1: 0.5, 2: 0.5})) == {}
    (name,) = correlations(depth("mor", "t", [1, 2], {1: 0.5}), depth("mor", "other", [2], {1: 0.5}))
    assert "mor on t at 4" in name


@pytest.mark.parametrize(
    ("chosen", "n", "end", "value"),
    [
        ({"rho": 0.5, "low": 0.25, "high": 0.75, "n": 3}, 3, "(3 seeds)", [0.5, 0.25, 0.75]),
        ({"rho": 0.5, "low": 0.25, "high": 0.75, "n": 2}, 3, "(2 of 3 seeds)", [0.5, 0.25, 0.75]),
        ({"rho": 0.5, "low": None, "high": None, "n": 1}, 1, "(1 seed)", 0.5),
        ({"rho": None, "low": None, "high": None, "n": 0}, 5, "(0 of 5 seeds)", UNDEFINED),
    ],
)
def test_a_correlation_says_of_how_many_seeds_it_is(chosen: Json, n: int, end: str, value: Any) -> None:
    found = correlations(depth("mor", "t", [1, 2], {1: 0.5}, n=n, chosen=chosen))
    assert [(name[-len(end) :], shown) for name, shown in found.items()] == [(end, value)]


def test_without_forced_depths_the_models_own_are_shown_alone() -> None:
    assert depths({"depth": [depth("mor", "t", [2], {}), depth("mor", "u", [2], {2: 0.75})]}) == {
        "accuracy of mor on t at 4, own depths (5 seeds)": 0.5,
        "accuracy of mor on u at 4, own depths (5 seeds)": 0.5,
        "accuracy of mor on u at 4, 2 passes forced (5 seeds)": 0.75,
    }


def altered(record: Json, *path: str | int, value: Any) -> Json:
    """A copy with one place changed."""
    whole = copy.deepcopy(record)
    place: Any = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return whole


REGIONAL, DEEP = battery(0.25), routed()
DAMAGED: Mapping[str, list[Any]] = {
    "skills_regions": [
        altered(REGIONAL, "scores", value=3),
        altered(REGIONAL, "scores", value=None),
        altered(REGIONAL, "scores", 0, value={}),
        altered(REGIONAL, "scores", 0, "seeds", value=[0.5]),
        altered(REGIONAL, "scores", 0, "seeds", "1", value="0.5"),
        altered(REGIONAL, "scores", 0, "seeds", "1", value=float("nan")),
        altered(REGIONAL, "scores", 0, "seeds", "1", value=10**400),
    ],
    "skills_depth": [
        altered(DEEP, "depth", value=3),
        altered(DEEP, "depth", 0, value={}),
        altered(DEEP, "depth", 0, "own", "accuracy", value=float("nan")),
        altered(DEEP, "depth", 0, "forced", 1, "accuracy", value="0.5"),
        altered(DEEP, "depth", 0, "forced", 1, "passes", value="2"),
        altered(DEEP, "depth", 0, "chosen", "rho", value=True),
        altered(DEEP, "depth", 0, "chosen", "n", value="five"),
        altered(DEEP, "depth", 0, "n", value=None),
    ],
}
CASES = [(name, one) for name, ones in DAMAGED.items() for one in ["", "{", "[]", "{}", "null", *ones]]


@pytest.mark.parametrize(("name", "record"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_a_damaged_record_changes_nothing(tmp_path: Path, name: str, record: Any) -> None:
    claim = find(name.replace("skills_", "homunculi-"))
    without = row(claim, tmp_path / "claims")
    whole = put_record(tmp_path / "claims", name, {"skills_regions": REGIONAL, "skills_depth": DEEP}[name])
    assert row(claim, tmp_path / "claims") != without
    put_record(tmp_path / "claims", name, record)
    assert row(claim, tmp_path / "claims") == without and without.finding.figures == {}
    whole.unlink()
    whole.mkdir()  # nor does what is no file
    assert row(claim, tmp_path / "claims") == without
