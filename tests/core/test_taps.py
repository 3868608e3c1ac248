"""Taps read and replace by name or pattern, refuse other shapes, and cost nothing without a listener."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import NO_TAPS, Recording, Taps, require_names
from homunculi.errors import InputError

X = torch.arange(6.0).reshape(1, 2, 3)


def test_nobody_listening_hands_the_tensor_through() -> None:
    assert NO_TAPS("embed", X) is X
    assert NO_TAPS.at(3)("resid_post", X) is X
    assert not NO_TAPS.wants("embed") and not NO_TAPS.at(1).wants("attn.pattern")


def test_hooks_match_names_and_patterns() -> None:
    heard: list[str] = []
    taps = Taps({"embed": lambda t, name: heard.append(name), "steps.*.resid_post": lambda t, name: heard.append(name)})
    assert taps("embed", X) is X
    for step in range(3):
        assert taps.at(step)("resid_post", X) is X
        taps.at(step)("resid_pre", X)
    assert heard == ["embed", "steps.0.resid_post", "steps.1.resid_post", "steps.2.resid_post"]
    assert taps.at(2).wants("resid_post") and not taps.at(2).wants("resid_pre") and not taps.wants("resid_post")


def test_hooks_replace_one_after_the_other() -> None:
    taps = Taps([("embed", lambda t, name: t + 1), ("*", lambda t, name: t * 10), ("embed", lambda t, name: None)])
    assert torch.equal(taps("embed", X), (X + 1) * 10)
    assert torch.equal(taps("other", X), X * 10)


@pytest.mark.parametrize("answer", [X[:, :1], X.double(), X.flatten()])
def test_another_shape_or_type_is_refused_by_name(answer: Tensor) -> None:
    with pytest.raises(InputError, match=r"tap steps\.4\.mlp\.out") as error:
        Taps({"*": lambda t, name: answer}).at(4)("mlp.out", X)
    assert "\n" not in str(error.value)


def test_recording_keeps_what_matches_after_other_hooks() -> None:
    recording = Recording("steps.*.z", "embed", others={"embed": lambda t, name: t - 1})
    recording("embed", X)
    recording.at(0)("z", X)
    recording.at(0)("q", X)
    assert list(recording) == ["embed", "steps.0.z"]
    assert torch.equal(recording["embed"], X - 1)
    assert recording["steps.0.z"] is X


def test_names_without_a_tap_are_refused_with_near_ones() -> None:
    names = ["embed", "steps.0.resid_pre", "steps.0.resid_post"]
    require_names(["embed", "steps.*.resid_*"], names)
    with pytest.raises(InputError, match=r"resid_pst: no such tap; near: steps\.0\.resid_p"):
        require_names(["embed", "steps.0.resid_pst"], names)
    with pytest.raises(InputError, match=r"near: embed"):
        require_names(["blocks.*"], names)
