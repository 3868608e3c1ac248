"""Sides of a comparison get equal budgets, or are told what excludes what."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from homunculi import models
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.costs import budget_of, cost_of, vocabulary_of
from homunculi.experiments.matching import MAY_DIFFER, NEAR, check_comparable, matched, turned
from homunculi.models.recursive import draw_passes
from homunculi.settings import changed, override
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

SIZES = {"d_model": 48, "n_heads": 4, "n_blocks": 3, "n_slots": 5, "max_seq_len": 64}


def run(name: str = "gpt", steps: int = 500, **shape: Any) -> RunConfig:
    kind = models.get(name).config_type
    known = {field.name for field in fields(kind)}
    sizes = {field: size for field, size in SIZES.items() if field in known}
    text = TextConfig(vocab_size=300)
    return RunConfig(model=kind(**(sizes | shape)), steps=steps, batch_tokens=256, text=text)


def built(config: RunConfig) -> LanguageModel:
    return models.get(models.name_of(config.model)).model_type(replace(config.model, vocab_size=300)).eval()


def own_parameters(config: RunConfig) -> int:
    return sum(p.numel() for p in built(config).parameters() if 300 not in p.shape)


# Models that are as wide as the vocabulary: of those, what a knob changes is coarse or small.
READABLE = [name for name in models.names() if name.startswith("vocab_")]
OTHERS = [name for name in models.names() if name not in READABLE]


# Equal budgets.


@pytest.mark.parametrize("d_model", [24, 48, 80, 136])
@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_gets_the_parameters_of_any_plain_one_or_says_that_it_cannot(
    name: str, d_model: int
) -> None:
    plain, side = run(d_model=d_model), run(name)
    try:
        found = matched([plain, side], ["parameters"])[1]
    except InputError as error:
        assert f"side 2 ({name}): no d_mlp" in str(error) and "within 1 %" in str(error)
        assert not 0.25 < own_parameters(side) / own_parameters(plain) < 4, "within reach of one width alone"
        return
    ratio = own_parameters(found.config) / own_parameters(plain)
    assert abs(ratio - 1) <= 0.01
    assert found.ratios["parameters"] == pytest.approx(ratio)
    assert found.ratios["tokens"] == 1
    assert override(side, found.assignments) == found.config
    assert {name for name, _ in changed(found.config, side).items()} == set(found.changes)


@pytest.mark.parametrize("name", READABLE)
def test_readable_models_are_sized_by_their_own_widths(name: str) -> None:
    side = run(name)
    larger = replace(side, model=replace(side.model, n_steps=2 * side.model.n_steps))
    found = matched([larger, side], ["parameters"])[1]
    ratio = found.budget.parameters / budget_of(larger).parameters
    assert abs(ratio - 1) <= 0.01 and found.changes
    assert override(side, found.assignments) == found.config


@pytest.mark.parametrize(("d_slice", "d_mlp"), [(16, 32), (600, 1200), (0, 512)])
def test_a_derived_width_of_slices_is_turned_around_its_value(d_slice: int, d_mlp: int) -> None:
    model = models.get("vocab_slices").config_type(vocab_size=1024, d_slice=d_slice)
    widths = [shape.d_mlp for shape in turned(model, "d_mlp")]
    assert (widths[0], widths[-1]) == (d_mlp // 4, 4 * d_mlp) and d_mlp in widths


def test_slices_of_derived_width_are_sized_by_several_knobs_where_none_alone_will_do() -> None:
    plain, side = run(d_model=200, n_blocks=5), run("vocab_columns")
    found = matched([plain, side], ["parameters", "flops", "tokens"])[1]
    assert all(abs(ratio - 1) <= 0.01 for ratio in found.ratios.values())
    assert len(found.changes) > 1 and override(side, found.assignments) == found.config


@pytest.mark.parametrize("d_model", [40, 64, 96])
@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_gets_the_flops_of_any_plain_one_at_equal_tokens(name: str, d_model: int) -> None:
    plain, side = run(d_model=d_model), run(name, steps=300)
    found = matched([plain, side], ["flops", "tokens"])[1]
    assert found.config.steps == plain.steps
    flops = [built(config).train().budget().training_flops_per_token for config in (found.config, plain)]
    assert abs(flops[0] / flops[1] - 1) <= 0.01
    assert found.ratios["flops"] == pytest.approx(flops[0] / flops[1], rel=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_flops_are_matched_by_steps_where_tokens_need_not_be_equal(name: str) -> None:
    plain, side = run(), run(name)
    found = matched([plain, side], ["parameters", "flops"])[1]
    assert {quantity for quantity in ("parameters", "flops") if abs(found.ratios[quantity] - 1) <= 0.01} == {
        "parameters",
        "flops",
    }
    tokens = found.config.steps * 256
    budgets = [built(config).train().budget().training_flops_per_token for config in (found.config, plain)]
    assert found.ratios["flops"] == pytest.approx(tokens * budgets[0] / (500 * 256 * budgets[1]), rel=1e-3)
    assert found.ratios["tokens"] == found.config.steps / 500


def test_parameters_flops_and_tokens_are_matched_at_once_where_a_model_has_two_knobs() -> None:
    plain, side = run(d_model=80, d_mlp=320), run("homunculi", n_experts=8, n_active=1)
    found = matched([plain, side], ["parameters", "flops", "tokens"])[1]
    assert all(abs(ratio - 1) <= 0.01 for ratio in found.ratios.values())
    assert len(found.changes) > 1
    assert abs(own_parameters(found.config) / own_parameters(plain) - 1) <= 0.01


def test_a_model_that_applies_blocks_again_says_that_parameters_and_flops_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"side 2 \(recursive\): parameters and flops exclude each other") as caught:
        matched([run(), run("recursive")], ["parameters", "flops", "tokens"])
    assert "1.00 times the parameters" in str(caught.value)


def test_a_side_against_itself_stays_as_it_is() -> None:
    for match in (["parameters"], ["flops"], ["parameters", "flops", "tokens"]):
        found = matched([run("mor"), run("mor")], match)
        assert [side.changes for side in found] == [{}, {}]
        assert [side.ratios for side in found] == 2 * [{"parameters": 1, "flops": 1, "tokens": 1}]


def test_the_baseline_may_be_any_side_and_stays_as_it_is() -> None:
    found = matched([run(d_model=64), run("ncn")], ["parameters"], baseline=1)
    assert found[1].changes == {} and found[1].config == run("ncn")
    assert abs(own_parameters(found[0].config) / own_parameters(run("ncn")) - 1) <= 0.01


def test_without_flops_all_sides_read_the_same_tokens() -> None:
    found = matched([run(steps=500), run("ncn", steps=400)], ["parameters"])
    assert found[1].changes["steps"] == "500"
    assert found[1].ratios["tokens"] == 1


# How shapes are changed.


def test_the_feed_forward_width_is_turned_first_in_steps_of_eight() -> None:
    found = matched([run(d_model=64), run()], ["parameters"])[1]
    assert set(found.changes) == {"model.d_mlp"}
    assert int(found.changes["model.d_mlp"]) % 8 == 0


def test_a_side_that_is_nearly_a_percent_off_is_brought_nearer_by_the_width_of_an_expert() -> None:
    plain = run(d_model=128, n_blocks=6, activation="gelu")
    side = run("homunculi", d_model=128, n_passes=3, n_experts=4, n_active=1)
    by_one = [own_parameters(replace(side, model=replace(side.model, d_mlp=n))) for n in range(8, 600, 8)]
    assert min(abs(n / own_parameters(plain) - 1) for n in by_one) > NEAR
    found = matched([plain, side], ["parameters"])[1]
    assert abs(own_parameters(found.config) / own_parameters(plain) - 1) <= NEAR
    assert set(found.changes) == {"model.d_mlp", "model.d_expert"}


def test_what_comes_within_half_a_percent_stays_as_it_is() -> None:
    plain = run(d_mlp=400)
    for d_mlp, changes in ((400, {}), (408, {"model.d_mlp": "400"})):
        assert matched([plain, run(d_mlp=d_mlp)], ["parameters"])[1].changes == changes


def test_a_target_beyond_one_width_is_reached_by_several_legal_knobs() -> None:
    found = matched([run(d_model=256, n_blocks=6), run(n_heads=3)], ["parameters"])[1]
    assert "model.d_model" in found.changes
    model = found.config.model
    assert model.d_model % 6 == 0 and model.d_model % 8 == 0, "three heads of even width, and steps of eight"
    assert abs(found.ratios["parameters"] - 1) <= 0.01


def test_sizing_needs_no_memory_for_the_model_and_no_random_numbers() -> None:
    state = torch.get_rng_state()
    huge = run(d_model=8192, n_blocks=24, n_heads=64)
    assert cost_of(huge).parameters > 15e9
    assert torch.equal(torch.get_rng_state(), state)


# What a run costs.


def test_a_run_costs_three_forwards_of_every_token() -> None:
    config, budget = run(), built(run()).budget(64)
    assert cost_of(config) == (budget.non_embedding_parameters, 3 * budget.flops_per_token * 500 * 256, 500 * 256)
    assert budget_of(config) == budget


def test_a_growing_loop_costs_the_passes_that_its_updates_make() -> None:
    whole = {n: built(run("recursive", n_slots=2 + n, n_passes=n)).budget().flops_per_token for n in (1, 2, 3)}
    growing = run("recursive", growth="steps", steps=6)
    assert cost_of(growing).flops == pytest.approx(3 * 256 * 2 * sum(whole.values()))
    by_loss = cost_of(run("recursive", growth="loss", steps=6)).flops
    assert by_loss == pytest.approx(3 * 256 * (whole[1] + 5 * whole[3])), "grown from the second update on"


def test_random_passes_cost_what_is_drawn_and_passes_without_gradient_one_forward() -> None:
    loop = {"injection": "add", "pass_count": "random", "max_passes": 6}
    passes = [draw_passes(step, 3, 6) for step in range(1, 41)]
    assert len(set(passes)) > 2
    costs = {n: built(run("recursive", n_slots=2 + n, n_passes=n)).budget().flops_per_token for n in (*passes, 1, 2)}
    drawn = cost_of(run("recursive", steps=40, **loop)).flops
    assert drawn == pytest.approx(3 * 256 * sum(costs[n] for n in passes))
    cut = cost_of(run("recursive", steps=40, backprop_passes=1, **loop)).flops
    one = costs[2] - costs[1]
    assert cut == pytest.approx(drawn - 2 * 256 * one * sum(n - 1 for n in passes))


def test_an_open_vocabulary_is_the_tokenizers() -> None:
    assert vocabulary_of(run()) == 300
    assert vocabulary_of(run(vocab_size=320)) == 320
    assert vocabulary_of(replace(run(), text=TextConfig(tokenizer="bytes"))) == 257


# What cannot be compared or matched.

DIFFERENT: dict[str, Any] = {
    "corpus": {"corpus": "worlds"},
    "batch_tokens": {"batch_tokens": 512},
    "seed": {"seed": 1},
    "data_seed": {"data_seed": 1},
    "eval_every": {"eval_every": 7},
    "precision": {"precision": "bf16"},
    "compile": {"compile": "off"},
    "device": {"device": "cpu"},
    "text.tokenizer": {"text": TextConfig(tokenizer="bytes", vocab_size=300)},
    "text.vocab_size": {"text": TextConfig(vocab_size=301)},
    "text.val_corpus": {"text": TextConfig(vocab_size=300, val_corpus="worlds")},
    "train.optimizer": {"train": TrainConfig(optimizer="muon")},
    "train.eval_tokens": {"train": TrainConfig(eval_tokens=1)},
    "train.ema": {"train": TrainConfig(ema=0.9)},
    "model.vocab_size": {"model": run(vocab_size=400).model},
    "model.max_seq_len": {"model": run(max_seq_len=32).model},
}
ALIKE: dict[str, Any] = {
    "model": {"model": run("mor").model},
    "model.vocab_size": {"model": run(vocab_size=300).model},
    "lr": {"lr": 0.5},
    "steps": {"steps": 3},
    "plasticity": {"train": TrainConfig(plasticity="off")},
    "memory": {"train": TrainConfig(micro_tokens=64, loss_chunks=2)},
    "words": {"output": OutputConfig(prompts=("x",)), "sample_every": 9, "checkpoint_every": 9},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_sides_that_differ_in_more_than_the_idea_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: \S+ on side 1 and \S+ on side 3"):
        check_comparable([run(), run("ncn"), replace(run(), **DIFFERENT[name])])
    with pytest.raises(InputError, match=rf"^{name}: "):
        matched([run(), replace(run(), **DIFFERENT[name])], ["parameters"])


def test_no_setting_but_the_declared_ones_may_differ() -> None:
    told = {name for names in (DIFFERENT, MAY_DIFFER) for name in names} | {"text", "train"}
    assert {field.name for field in fields(RunConfig)} <= told


@pytest.mark.parametrize("name", ALIKE)
def test_the_idea_and_what_goes_with_it_may_differ(name: str) -> None:
    check_comparable([run(), replace(run(), **ALIKE[name])])


def test_settings_that_are_part_of_the_question_can_be_declared() -> None:
    other = replace(run(), train=TrainConfig(optimizer="muon"))
    check_comparable([run(), other], also=("train.optimizer",))
    assert matched([run(), other], ["parameters"], also=("train.optimizer",))[1].changes == {}
    with pytest.raises(InputError, match=r"train\.ema"):
        check_comparable([run(), replace(run(), train=TrainConfig(ema=0.5))], also=("train.optimizer",))


@pytest.mark.parametrize(
    ("match", "baseline", "words"),
    [([], 0, "match: nothing"), (["size"], 0, "match: size"), (["parameters"], 2, "baseline: 2")],
)
def test_what_is_asked_must_exist(match: list[str], baseline: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        matched([run(), run()], match, baseline)


def test_too_few_steps_to_match_flops_are_refused() -> None:
    with pytest.raises(InputError, match=r"^steps: side 2 \(gpt\) would train \d steps"):
        matched([run(steps=7), run(d_model=64, steps=7)], ["flops"])


def test_a_model_without_knobs_is_refused_with_its_ratio() -> None:
    huge = run(d_model=2048, n_blocks=12)
    with pytest.raises(
        InputError, match=r"side 2 \(ncn\): no d_mlp, d_model, n_blocks .* the nearest has 0\.\d+ times"
    ):
        matched([huge, run("ncn", d_model=16)], ["parameters"])
