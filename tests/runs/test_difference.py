"""What differs between runs."""

from __future__ import annotations

from homunculi.runs.difference import ABSENT, differences, varying


def test_only_what_differs_is_named_with_dotted_keys() -> None:
    a = {"id": "1", "config": {"lr": 0.1, "model": {"d_model": 64, "n_heads": 4}}, "provenance": {"python": "3.11"}}
    b = {"id": "2", "config": {"lr": 0.1, "model": {"d_model": 96, "n_heads": 4}}, "provenance": {"python": "3.12"}}
    assert differences(a, b) == [("config.model.d_model", 64, 96), ("provenance.python", "3.11", "3.12")]


def test_a_run_does_not_differ_from_itself() -> None:
    info = {"config": {"x": float("nan"), "list": [1, [2.0]], "empty": {}}, "data": {"hash": "ab"}}
    assert (
        differences(info, {"config": {"x": float("nan"), "list": [1, [2.0]], "empty": {}}, "data": {"hash": "ab"}})
        == []
    )


def test_a_key_of_one_side_is_absent_on_the_other() -> None:
    assert differences({"config": {"a": None, "m": {"x": 1}}}, {"config": {"b": 1, "m": {}}}) == [
        ("config.a", None, ABSENT),
        ("config.m.x", 1, ABSENT),
        ("config.b", ABSENT, 1),
        ("config.m", ABSENT, {}),
    ]


def test_truth_values_are_not_numbers_but_whole_floats_are() -> None:
    a = {"config": {"flag": True, "n": 1, "l": [1, True]}}
    b = {"config": {"flag": 1, "n": 1.0, "l": [1.0, 1]}}
    assert [key for key, _, _ in differences(a, b)] == ["config.flag", "config.l"]


def test_sections_come_in_order_and_others_are_left_out() -> None:
    a = {"provenance": {"v": 1}, "data": {"h": 1}, "config": {"c": 1}, "created": 1}
    b = {"provenance": {"v": 2}, "data": {"h": 2}, "config": {"c": 2}, "created": 2}
    assert [key for key, _, _ in differences(a, b)] == ["config.c", "data.h", "provenance.v"]


def test_plain_mappings_are_compared_whole() -> None:
    assert differences({"lr": 1, "steps": 5}, {"lr": 2, "steps": 5}) == [("lr", 1, 2)]


def test_several_runs_are_compared_at_once() -> None:
    infos = [{"config": {"seed": seed, "lr": 0.1}} for seed in (0, 1, 0)]
    assert varying(infos) == [("config.seed", [0, 1, 0])]
