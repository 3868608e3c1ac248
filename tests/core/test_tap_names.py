"""The catalogue of taps without computing, and the names that another library gives them."""

from __future__ import annotations

import pytest
import torch

from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.schedule import in_order
from homunculi.errors import InputError
from homunculi.interop.transformerlens import alias
from homunculi.models import build
from homunculi.models.gpt import GPT


def tiny(**config: int) -> LanguageModel:
    return build("gpt", **({"vocab_size": 11, "d_model": 16, "n_blocks": 2, "n_heads": 4, "max_seq_len": 32} | config))


def test_catalogue_lists_names_shapes_blocks_in_order() -> None:
    found = catalogue(tiny(n_kv_heads=2))
    shapes = {entry.name: entry.shape for entry in found}
    assert next(iter(shapes)) == "embed" and list(shapes)[-1] == "readout.logits"
    assert shapes["embed"] == ("B", "T", 16)
    assert shapes["steps.1.attn.k"] == ("B", "T", 2, 4)
    assert shapes["steps.1.attn.pattern"] == ("B", 4, "T", "T")
    assert shapes["readout.logits"] == ("B", "T", 11)
    assert [entry.block for entry in found if entry.name.endswith("resid_pre")] == [0, 1]


def test_catalogue_counts_repeats_of_a_block_applied_again() -> None:
    model = tiny()
    model.schedule = in_order((0, 1, 1))
    found = [(entry.block, entry.repeat) for entry in catalogue(model) if entry.name.endswith(".resid_post")]
    assert found == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("sizes", [{"max_seq_len": 2}, {"d_model": 12, "n_heads": 3, "n_blocks": 5, "vocab_size": 7}])
def test_batch_and_length_are_told_from_other_sizes(sizes: dict[str, int]) -> None:
    shapes = {entry.name: entry.shape for entry in catalogue(tiny(**sizes))}
    assert shapes["embed"][:2] == shapes["readout.logits"][:2] == ("B", "T")
    assert all(isinstance(n, int) for shape in (shapes["embed"], shapes["readout.logits"]) for n in shape[2:])


def test_catalogue_leaves_the_model_as_it_was() -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    catalogue(model)
    assert model.training
    assert all(t.device.type == "cpu" and torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Deciding(GPT):
    """Looks at numbers to decide where to go, which the meta device does not have."""

    def readout(self, x_BTD: torch.Tensor, taps: object = None) -> torch.Tensor:
        assert x_BTD.sum().isfinite().item()
        return super().readout(x_BTD, taps)  # type: ignore[arg-type]


def test_a_model_whose_path_depends_on_numbers_has_the_same_catalogue() -> None:
    plain = tiny()
    assert catalogue(Deciding(plain.config)) == catalogue(plain)


def test_names_are_translated_both_ways() -> None:
    assert alias("blocks.3.hook_resid_pre") == "steps.3.resid_pre"
    assert alias("steps.11.attn.pattern") == "blocks.11.attn.hook_pattern"
    assert alias("hook_embed") == "embed" and alias("embed") == "hook_embed"
    assert alias("ln_final.hook_normalized") == "readout.norm"
    assert alias("steps.*.mlp.out") == "blocks.*.hook_mlp_out"


def test_every_tap_but_the_logits_has_another_name_and_it_leads_back() -> None:
    ours = [entry.name for entry in catalogue(tiny()) if entry.name != "readout.logits"]
    theirs = [alias(name) for name in ours]
    assert len(set(theirs)) == len(ours)
    assert [alias(name) for name in theirs] == ours


@pytest.mark.parametrize("name", ["steps.0.mlp.posst", "blocks.0.hook_resid", "steps.0.embed", "readout.logits", ""])
def test_a_name_without_a_translation_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="near: ") as error:
        alias(name)
    assert "\n" not in str(error.value)
