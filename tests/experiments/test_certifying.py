"""Certificates of a comparison's sides: made at the full context too, kept by what decides them, carried elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from homunculi.cli.compare import wanted_sides
from homunculi.core.output import Hidden
from homunculi.experiments import certifying
from homunculi.experiments.certifying import CERTIFIED_CONTEXT, Certified, certificate_of, key_of, path_of
from homunculi.experiments.compare import Request, certify_sides, compare
from homunculi.models import architecture, registry
from homunculi.models.gpt import GPT, Config
from tests.experiments.inside import TINY, Inside, Listener

LONG = 160
SHAPE = {"d_model": 8, "n_blocks": 1, "n_heads": 1, "vocab_size": 20, "max_seq_len": LONG}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates without a trial, with maps of few positions."""
    monkeypatch.setattr(certifying, "TRIAL_SECONDS", 0)
    monkeypatch.setattr("homunculi.experiments.leaks.MAP_SECONDS", 0.2)


def next_ones(x_BTD: Tensor) -> Tensor:
    return F.pad(x_BTD[:, 1:], (0, 0, 0, 1))


def one_pair(x_BTD: Tensor) -> Tensor:
    """Position 150 sees 151."""
    return F.pad(x_BTD[:, 151:152], (0, 0, 150, x_BTD.shape[1] - 151))


def beyond(look: Any, cacheless_: str = "") -> Iterator[type]:
    """An architecture that looks ahead in whole rows of more tokens than are certified at first, and nowhere else."""
    config = type("LateConfig", (Config,), {"__slots__": ()})

    @architecture("late_toy", config)
    class Late(GPT):
        cacheless = cacheless_

        def trunk(self, ids_BT: Tensor, taps: Any = None, cache: Any = None, *more: Any) -> Hidden:
            hidden = super().trunk(ids_BT, taps, cache, *more)
            if cache is not None or ids_BT.shape[1] <= max(CERTIFIED_CONTEXT, 152):
                return hidden
            return replace(hidden, x_BTD=hidden.x_BTD + 0.1 * look(self.embed(ids_BT)))

    yield config
    del registry._REGISTERED["late_toy"]


@pytest.fixture(params=[(next_ones, ""), (one_pair, ""), (next_ones, "it keeps no state")])
def late(request: pytest.FixtureRequest) -> Iterator[type]:
    yield from beyond(*request.param)


def test_a_look_that_only_longer_rows_show_is_found(late: type) -> None:
    found = certifying.make_certificate(Certified(late(**SHAPE)))
    passed = {check["name"]: check["passed"] for check in found["checks"]}
    assert not found["causal"] and passed["every_cut"] and not passed[f"every_cut_at_{LONG}"]
    assert [leaks["context"] for leaks in found["leaks"]] == [LONG, LONG]


def test_a_comparison_refuses_it_and_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    (side,) = wanted_sides([f"{tmp_path / 'tiny.py'}:tiny", f"model.max_seq_len={LONG}", "batch_tokens=640"], None)
    looks = beyond(next_ones)
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    sides = [side, replace(side, name="late", config=replace(side.config, model=next(looks)(**shape)))]
    request = Request(sides=sides, seeds=2, match=("tokens",), factors=(), folder=tmp_path / "c")
    launch = Inside(0)
    found = compare(request, Listener(), launch)
    next(looks, None)
    (refused,) = found.refused
    assert refused["run"] == "late" and not launch.folders and found.sides[0].ranked
    assert refused["reason"].startswith("not causal: ") and f"every_cut_at_{LONG} " in refused["reason"]
    assert "\n" not in refused["reason"] and "; every position sees the next one" in refused["reason"]


def test_rows_that_fit_are_asked_once() -> None:
    found = certifying.make_certificate(Certified(Config(**(SHAPE | {"max_seq_len": 24}))))
    assert found["causal"] and not any("_at_" in check["name"] for check in found["checks"])
    assert (found["vocab_size"], found["context"]) == (20, 24)


def test_a_certificate_is_made_once_and_read_wherever_the_folder_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, said = Certified(Config(**(SHAPE | {"max_seq_len": 24}))), list[str]()
    made = certificate_of(model, "a", said.append)
    assert made["causal"] and said == ["certifying a"] and path_of(made["key"]).exists()
    shutil.copytree(path_of(made["key"]).parent, tmp_path / "carried")
    monkeypatch.setenv("HOMUNCULI_CERTIFICATES", str(tmp_path / "carried"))
    monkeypatch.setattr(certifying, "make_certificate", lambda certified: pytest.fail("made again"))
    assert certificate_of(model, "a", said.append) == made and len(said) == 1


def test_the_key_follows_from_the_model_its_interventions_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SHAPE | {"max_seq_len": 24}
    keys = {
        key_of(Certified(Config(**small))),
        key_of(Certified(Config(**(small | {"max_seq_len": 200})))),
        key_of(Certified(Config(**(small | {"max_seq_len": 300})))),
        key_of(Certified(Config(**(small | {"d_mlp": 40})))),
        key_of(Certified(Config(**small), ("control.*=shuffled",))),
    }
    assert len(keys) == 5
    wide = [key_of(Certified(Config(**(small | {"vocab_size": n})))) for n in (300, 4096)]
    assert wide[0] == wide[1]  # both are certified with 256
    for code in ("code_hash", "_certifier_hash"):
        monkeypatch.setattr(certifying, code, lambda: "another")
        keys.add(key_of(Certified(Config(**small))))
    assert len(keys) == 7


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"key": "x", "causal": true, "checks": []}'])
def test_a_damaged_or_foreign_file_is_made_anew(damage: str) -> None:
    model = Certified(Config(**(SHAPE | {"max_seq_len": 24})))
    path = path_of(key_of(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(damage)
    said = list[str]()
    assert certificate_of(model, "a", said.append)["causal"] and said == ["certifying a"]
    assert json.loads(path.read_text())["key"] == key_of(model)


def test_what_could_not_be_certified_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*more: Any, **others: Any) -> None:
        raise RuntimeError("no memory")

    model = Certified(Config(**(SHAPE | {"max_seq_len": 24})))
    monkeypatch.setattr(certifying, "certify", break_down)
    assert certificate_of(model, "a", lambda said: None)["reason"] == (
        "it could not be certified (RuntimeError: no memory)"
    )
    assert not path_of(key_of(model)).exists()


def test_sides_are_certified_before_their_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    sides = wanted_sides([f"a={tmp_path / 'tiny.py'}:tiny", f"b={tmp_path / 'tiny.py'}:tiny;model.d_mlp=32"], None)
    request = Request(sides=sides, seeds=2, match=("tokens",), factors=(), baselines=False, folder=tmp_path / "c")
    before = certify_sides(request, Listener())
    assert all(side.ranked for side in before) and not (tmp_path / "c").exists()
    monkeypatch.setattr(certifying, "make_certificate", lambda certified: pytest.fail("made again"))
    after = compare(request, Listener(), Inside())
    assert [side.certificate for side in after.sides] == [side.certificate for side in before] and len(after.runs) == 4
