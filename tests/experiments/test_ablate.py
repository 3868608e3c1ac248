"""Ablations find a part that matters, and show nothing of one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from homunculi.cli.recipes import configured
from homunculi.errors import InputError
from homunculi.experiments import certifying
from homunculi.experiments.ablate import HOW, Variant, default_folder, findings, parts_of, sides_of, variants, written
from homunculi.experiments.compare import Request, compare
from homunculi.experiments.comparison import Comparison
from homunculi.models import get, names
from homunculi.settings import override
from homunculi.text.config import TextConfig
from homunculi.train.config import RunConfig
from tests.experiments import toys_parts
from tests.experiments.inside import Inside, Listener

MATCH = ("parameters", "tokens")
CAUSAL = {"causal": True, "causal_in_training": True, "checks": []}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fleets that look more often; what may be ranked is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch, toys_parts.registered():
        patch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
        patch.setattr(certifying, "make_certificate", lambda certified: dict(CAUSAL))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys_parts.write_recipe(tmp_path_factory.mktemp("recipes"))


def ablate(recipe: str, folder: Path, launch: Inside, parts: list[str], how: tuple[str, ...], seeds: int) -> Comparison:
    config, _ = configured(recipe, [])
    made, _ = variants(config, parts, how, MATCH)
    request = Request(
        sides=sides_of(recipe, [], config, made, folder),
        seeds=seeds,
        match=MATCH,
        factors=(),
        at_once=1,
        baselines=False,
        folder=folder,
    )
    return compare(request, Listener(), launch)


@dataclass
class Ablated:
    """An ablation in two steps: what each began, and what came of both."""

    first: list[str]
    second: list[str]
    comparison: Comparison


@pytest.fixture(scope="module")
def ablated(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Ablated:
    folder, launches = tmp_path_factory.mktemp("ablated") / "c", (Inside(), Inside())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOMUNCULI_CERTIFICATES", str(tmp_path_factory.mktemp("certificates")))
        ablate(recipe, folder, launches[0], ["knows"], ("removed", "shuffled"), 3)
        found = ablate(recipe, folder, launches[1], ["idles"], ("removed", "neutral"), 3)
    return Ablated(launches[0].folders, launches[1].folders, found)


def test_a_part_that_matters_is_found_to_help_however_it_is_missing(ablated: Ablated) -> None:
    found = {one["how"]: one for one in findings(ablated.comparison) if one["part"] == "knows"}
    assert list(found) == ["removed", "shuffled"]
    for one in found.values():
        assert one["verdict"] == "helps" and one["low"] > 0 and one["n"] == 3


def test_a_part_that_does_nothing_shows_nothing(ablated: Ablated) -> None:
    found = {one["how"]: one for one in findings(ablated.comparison) if one["part"] == "idles"}
    assert [one["verdict"] for one in found.values()] == ["no difference shown"] * 2
    assert all(found["removed"]["differences"])  # other initial weights: chance alone
    assert found["neutral"]["differences"] == [0.0, 0.0, 0.0]


def test_the_sentences_say_what_follows(ablated: Ablated) -> None:
    lines = list(written(ablated.comparison))
    assert lines[0].startswith("knows: removing it costs +") and lines[0].endswith("n = 3: it helps")
    assert any(line.startswith("knows: shuffling its signal costs +") for line in lines)
    assert any(line.startswith("idles: removing it changes ") and "no difference shown" in line for line in lines)
    assert "idles: only for company" in lines and lines[-1].startswith("fewer than 5 seeds")
    assert not any("absent" in line for line in lines)
    assert (ablated.comparison.folder / "report.html").read_text().count("knows-removed") > 3


def test_runs_hold_their_interventions_and_the_rest_is_equal(ablated: Ablated) -> None:
    sides = {side.name: side for side in ablated.comparison.sides}
    assert sides["knows-shuffled"].config["train"]["interventions"] == ["control.hint=shuffled"]
    assert {side.ratios["parameters"] for side in ablated.comparison.sides} == {1.0}
    samples = {run["side"]: run["sample"] for run in ablated.comparison.runs}
    assert samples["whole"] and samples["idles-neutral"] and not samples["knows-shuffled"]


def test_further_parts_add_to_the_folder_and_nothing_is_done_twice(ablated: Ablated) -> None:
    for runs, sides in (
        (ablated.first, ["whole", "knows-removed", "knows-shuffled"]),
        (ablated.second, ["idles-removed", "idles-neutral"]),
    ):
        assert runs == [f"runs/{side}-s{seed}" for seed in range(3) for side in sides]
    assert len(findings(ablated.comparison)) == 4


def small(name: str, *words: str) -> RunConfig:
    """A run of a small model of an architecture."""
    config = RunConfig(model=get(name).config_type(d_model=32, n_heads=2), text=TextConfig(tokenizer="bytes"))
    return override(config, words)


@pytest.mark.parametrize("name", [name for name in names() if get(name).parts])
def test_every_declared_part_can_be_taken_out_and_leaves_an_equal_budget(name: str) -> None:
    made, left_out = variants(small(name), [], HOW, MATCH)
    assert not left_out
    assert {variant.part for variant in made} == {part.name for part in parts_of(small(name))}
    assert len({variant.assignments for variant in made}) == len(made)


def test_parts_that_are_switched_on_can_be_taken_out() -> None:
    on = ["model.injection=add", "model.pass_signal=gain", "model.growth=steps", "model.kv_sharing=first"]
    ways = {variant.name for variant in variants(small("recursive", *on), [], HOW, MATCH)[0]}
    assert {"loop-removed", "injection-removed", "injection-neutral", "injection-shuffled"} <= ways
    assert {"pass_signal-removed", "growth-removed", "kv_sharing-removed"} <= ways
    made, _ = variants(small("ncn", "model.plasticity=gain"), ["plasticity"], HOW, MATCH)
    assert made == [
        Variant("plasticity", "removed", ("model.plasticity=none",)),
        Variant("plasticity", "shuffled", ("train.plasticity=shuffled",)),
    ]


def test_every_input_and_effect_of_a_controller_can_be_taken_out() -> None:
    on = ["model.signals=gain,gate,heads,film,beta,dropout", "model.dropout=0.1", "model.recurrence=gated"]
    on += [
        "model.instruction_tokens=2",
        "model.statistics=change",
        "model.skip_below=0.1",
        "model.skip_block_below=0.1",
    ]
    made, left_out = variants(small("ncn", *on), [], HOW, MATCH)
    assert not left_out
    ways = {variant.name for variant in made}
    assert {f"{name}-removed" for name in ("gain", "gate", "heads", "film", "beta", "dropout", "controller")} <= ways
    assert {
        f"{name}-{how}" for name in ("recurrence", "instruction", "statistics") for how in HOW if how != "replaced"
    } <= ways
    assert "heads-neutral" in ways and "dropout-neutral" not in ways


def test_what_is_taken_out_is_gone_and_other_interventions_stay() -> None:
    config = small("homunculi", "train.interventions=steps.*.mlp.out=neutral:1.0")
    made = {variant.name: override(config, variant.assignments) for variant in variants(config, [], HOW, MATCH)[0]}
    assert made["amygdala-replaced"].model.filled == ("amygdala",)
    assert not made["amygdala-replaced"].model.has("amygdala")
    assert made["dopamine-removed"].model.signals == ("acetylcholine", "noradrenaline", "serotonin")
    assert made["packet-neutral"].train.interventions == (
        "steps.*.mlp.out=neutral:1.0",
        "steps.*.packet.*=neutral:1.0",
    )
    assert made["forecast-removed"].model.forecast == "none"
    without = small("homunculi", "model.regions=temporal,neocortex", "model.signals=dopamine")
    assert [part.name for part in parts_of(without)] == [
        "temporal", "neocortex", "packet", "dopamine", "plasticity", "router"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parts", "how", "said"),
    [
        ("ncn", ["gian"], HOW, r"gian: no such part of ncn as configured; did you mean gain\? it has controller, gain"),
        ("ncn", [], ("frozen",), "--how: frozen is no way to do without a part; there are removed, replaced"),
        ("ncn", ["homeostasis"], ("neutral",), r"homeostasis: cannot be neutral; there are controller \(removed, neut"),
        ("gpt", ["qk_norm"], HOW, "qk_norm: no such part of gpt as configured; it has gating"),
        ("ncn_published", [], HOW, "ncn_published: has no part that can be taken out; its architecture declares none"),
    ],
)
def test_what_cannot_be_taken_out_is_said_in_a_line(name: str, parts: list[str], how: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        variants(small(name), parts, how, MATCH)
    assert "\n" not in str(refused.value)


def test_a_side_that_no_budget_fits_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(configs: Any, match: Any) -> None:
        if not configs[1].model.qk_norm:
            raise InputError("match: side 2 (gpt): no knob will do")

    monkeypatch.setattr("homunculi.experiments.ablate.matched", refuse)
    config = small("gpt", "model.qk_norm=true")
    made, left_out = variants(config, [], ("removed",), MATCH)
    assert [variant.name for variant in made] == ["gating-removed"]
    assert left_out == {"qk_norm-removed": "match: qk_norm-removed (gpt): no knob will do"}
    with pytest.raises(InputError, match=r"qk_norm: qk_norm-removed: match: .*no knob will do"):
        variants(config, ["qk_norm"], ("removed",), MATCH)


def test_the_folder_follows_from_the_whole_model_alone(recipe: str) -> None:
    config, _ = configured(recipe, [])
    folder = default_folder(recipe, config, MATCH, ())
    assert folder.name.startswith("ablate-toy-py-toy-")
    assert default_folder(recipe, override(config, ["device=cuda"]), MATCH, ()) == folder
    assert default_folder(recipe, override(config, ["steps=9"]), MATCH, ()) != folder
