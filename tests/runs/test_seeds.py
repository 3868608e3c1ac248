"""Runs of one recipe are found whatever their seeds, and their course is that of those that came furthest."""

from __future__ import annotations

import numpy as np

from homunculi.runs.chronology import Curve
from homunculi.runs.seeds import course, seed_groups


def info(seed: int, **config: object) -> dict[str, object]:
    return {"config": {"seed": seed, "data_seed": seed, "device": f"cpu:{seed}", "lr": 0.01} | config}


def test_runs_that_differ_in_seeds_alone_are_one_group() -> None:
    infos = [info(0), info(0, lr=0.02), info(1), info(2, output={"log_every": 5})]
    groups = seed_groups(infos, ["gpt-s0", "other", "gpt-s1", "gpt-s12"])
    assert [(group.name, group.places) for group in groups] == [("gpt (3 seeds)", (0, 2, 3)), ("other", (1,))]


def test_names_stay_apart_and_runs_without_a_configuration_alone() -> None:
    infos = [info(0), info(1), info(0, lr=1), info(1, lr=1), {}, {"config": "damaged"}]
    groups = seed_groups(infos, ["a1", "a2", "a3", "a4", "b", "c"])
    assert [group.name for group in groups] == ["a1 (2 seeds)", "a3 (2 seeds)", "b", "c"]
    assert seed_groups([info(0), info(1)], ["x", "y"])[0].name == "x (2 seeds)"


def test_other_data_is_another_recipe() -> None:
    infos = [info(0) | {"data": {"data_hash": "a"}}, info(1) | {"data": {"data_hash": "b"}}]
    assert len(seed_groups(infos, ["a", "b"])) == 2


def test_a_course_is_the_mean_of_runs_that_came_furthest_where_all_were_followed() -> None:
    def curve(steps: list[float], value: float) -> Curve:
        at = np.array(steps)
        return Curve("loss", at, at * value, 10 * at)

    found = course([curve([0, 1, 2, 4], 1), curve([0, 2, 4], 3), curve([0, 2], 99)])
    assert found.n_runs == 2 and found.steps.tolist() == [0, 2, 4] and found.tokens.tolist() == [0, 20, 40]
    assert found.mean.tolist() == [0, 4, 8] and found.low.tolist() == [0, 2, 4] and found.high.tolist() == [0, 6, 12]
