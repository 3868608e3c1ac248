"""The released Mixture-of-Recursions and its plain recursive models, against outputs of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import Reference, furthest, read, recorded
from torch import Tensor

from homunculi import certify
from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.evals.generation import Sampling, generate
from homunculi.models import build
from homunculi.models.mor_published import ExpertChoice, TokenChoice

RECURSIVE = ("recursive_cycle_r2", "recursive_middle_cycle_r3", "recursive_middle_sequence_r3")
EXPERT = (
    "mor_expert_cycle_r2_mlp_auxrouter",
    "mor_expert_kvshare_middle_cycle_r3",
    "mor_expert_middle_cycle_r3",
    "mor_expert_middle_cycle_r3_as_released_untied_attn",
)
TOKEN = ("mor_token_middle_cycle_r3", "mor_token_middle_cycle_r3_lossfree")
ATOL = 2e-5
SMALL: dict[str, Any] = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_slots": 5, "max_seq_len": 24}
FORMS: dict[str, dict[str, Any]] = {
    "none": {"routing": "none"},
    "token": {"routing": "token"},
    "expert": {"routing": "expert"},
    "shared_kv": {"routing": "expert", "expert": ExpertChoice(shared_kv=True)},
}


def reference(folder: Path, name: str) -> Reference:
    return read(folder / "mor" / f"{name}.safetensors")


@pytest.mark.parametrize("name", [*RECURSIVE, *EXPERT, *TOKEN])
def test_logits_states_and_router_scores_are_the_originals(name: str, parity_folder: Path) -> None:
    case = reference(parity_folder, name)
    model: Any = case.build("mor")
    logits, seen = recorded(model, case["input_ids"])
    ours = {"logits": logits} | states(model, seen)
    if model.config.routing == "expert":
        for r, steps in enumerate(model.passes):
            ours[f"router/recursion{r}/logits"] = seen[f"steps.{steps[0]}.router.logits"][..., None]
    elif model.config.routing == "token":
        ours["router/logits"] = seen[f"steps.{model.passes[0][0]}.router.logits"]
    stored = {key for key in case.tensors if key == "logits" or key.startswith(("state/", "router/"))}
    assert ours.keys() == {key for key in stored if not key.endswith("/selected")}
    assert furthest({key: (ours[key], case[key]) for key in ours}, ATOL)[0] < 1e-5


def states(model: Any, seen: Recording) -> dict[str, Tensor]:
    """The stream after each layer of the original: a step, a recursion, or all recursions."""
    first, middle, last = ([f"steps.{i}.resid_post" for i in region] for region in model.regions)
    if model.config.routing == "expert":
        middle = [f"steps.{steps[-1]}.router.out" for steps in model.passes]
    elif model.config.routing == "token":
        middle = [f"steps.{model.passes[-1][-1]}.router.out"]
    return {f"state/layer{i}_out": seen[name] for i, name in enumerate([*first, *middle, *last])}


@pytest.mark.parametrize("name", EXPERT)
def test_the_same_tokens_are_kept_in_each_recursion(name: str, parity_folder: Path) -> None:
    case = reference(parity_folder, name)
    model: Any = case.build("mor")
    _, seen = recorded(model, case["input_ids"])
    for r, steps in enumerate(model.passes):
        ours, theirs = seen[f"steps.{steps[0]}.router.selected"], case[f"router/recursion{r}/selected"][..., 0]
        assert torch.equal(ours, theirs.sort(-1).values)


def test_the_bias_changes_which_depths_are_chosen_but_not_their_weights(parity_folder: Path) -> None:
    case = reference(parity_folder, "mor_token_middle_cycle_r3_lossfree")
    model: Any = case.build("mor")
    _, seen = recorded(model, case["input_ids"])
    score_BTR, bias_R = case["router/logits"], case["weights/model.layers.1.router_bias"]
    gate_BTR, depth_BT = 0.1 * score_BTR.sigmoid(), seen["steps.1.router.depth"]
    assert torch.allclose(seen["steps.1.router.gate"], gate_BTR, atol=1e-6)
    assert torch.equal(depth_BT, (gate_BTR + bias_R).argmax(-1))
    assert (depth_BT != gate_BTR.argmax(-1)).float().mean() > 0.1


@pytest.mark.parametrize("name", ["mor_expert_cycle_r2_mlp_auxrouter", *EXPERT[2:], *TOKEN])
def test_training_losses_are_the_originals(name: str, parity_folder: Path) -> None:
    """The original divides some by targets over tokens, (T − 1) / T for a sequence; ours have a target a token."""
    case = reference(parity_folder, name)
    model: Any = case.build("mor").train()
    options = model.config.expert if model.config.routing == "expert" else model.config.token
    n_tokens = case["input_ids"].shape[1]
    scale = n_tokens / (n_tokens - 1)
    for row, ids_1T in enumerate(case["input_ids"].split(1)):
        output = model(ids_1T)
        theirs = {key: value[row].item() for key, value in case.under("train/").items()}
        cross_entropy = F.cross_entropy(output.logits[0, :-1], ids_1T[0, 1:]).item()
        assert cross_entropy == pytest.approx(theirs["ce"], rel=1e-5)
        expected = {}
        if model.config.routing == "expert":
            expected["router_prediction"] = options.coefficient * theirs["sampling_loss"]
            assert output.statistics["router_accuracy"].item() == pytest.approx(theirs["sampling_acc"], rel=1e-5)
        elif options.balancing == "loss":
            expected["router_balance"] = options.coefficient * theirs["balancing_loss"] / scale
            expected["router_z"] = options.z_coefficient * theirs["router_z_loss"] / scale
        assert {key: term.item() for key, term in output.loss_terms.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [*RECURSIVE, *EXPERT, *TOKEN])
def test_expert_choice_is_certified_to_look_ahead_and_the_other_forms_to_be_causal(
    name: str, parity_folder: Path
) -> None:
    case = reference(parity_folder, name)
    model = case.build("mor")
    certificate = certify(model, model.config.vocab_size, 12, trial_seconds=0)
    failed = {check.name for check in certificate.failed}
    if name in EXPERT:
        assert not certificate.causal and not certificate.causal_in_training
        assert {"token_edits", "prefix_consistency", "cached_decoding"} <= failed
        assert not failed & {"determinism", "batch_independence", "call_independence", "state_unchanged"}
    else:
        assert certificate.causal and certificate.causal_in_training and not failed


def small(form: str) -> LanguageModel:
    torch.manual_seed(0)
    model = build("mor_published", **SMALL, **FORMS[form]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


IDS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))


def test_what_expert_choice_decodes_are_the_logits_of_each_prefix() -> None:
    model = small("expert")
    prompts = [IDS[0, :7].tolist(), IDS[1, :4].tolist()]
    drawn = list(generate(model, prompts, 5, Sampling(temperature=0)))
    for row, prompt in enumerate(prompts):
        for token in drawn:
            with torch.no_grad():
                assert model(torch.tensor([prompt])).logits[0, -1].argmax() == token[row]
            prompt.append(int(token[row]))


@pytest.mark.parametrize("form", ["none", "token"])
def test_documents_of_a_row_do_not_see_each_other(form: str) -> None:
    model = small(form)
    documents_BT = (torch.arange(24) >= 9).long().expand(2, -1)
    with torch.no_grad():
        whole = model(IDS, documents_BT=documents_BT).logits
        assert torch.allclose(whole[:, 9:], model(IDS[:, 9:]).logits, atol=1e-4)
        assert torch.allclose(whole[:, :9], model(IDS[:, :9]).logits, atol=1e-4)


def test_expert_choice_refuses_documents_because_it_ranks_across_them() -> None:
    with pytest.raises(InputError, match=r"text\.document_mask"):
        small("expert")(IDS, documents_BT=torch.zeros_like(IDS))


@pytest.mark.parametrize("form", list(FORMS))
def test_every_tap_fires_once_and_reading_changes_nothing(form: str) -> None:
    model, fired = small(form), list[str]()
    with torch.no_grad():
        read_out = model(IDS, Recording("*", others={"*": lambda tensor, name: fired.append(name)})).logits
        assert torch.equal(read_out, model(IDS).logits)
    assert fired == [entry.name for entry in catalogue(model)] and len(set(fired)) == len(fired)


def test_writing_who_is_kept_changes_who_takes_part() -> None:
    """Told to take the first sixteen tokens, a recursion moves their stream and no other's."""
    model: Any = small("expert")
    first, last = model.passes[1][0], model.passes[1][-1]

    def earliest(tensor: Tensor, _: str) -> Tensor:
        return torch.arange(tensor.shape[1]).expand_as(tensor).contiguous()

    seen = Recording("*", others={f"steps.{first}.router.selected": earliest})
    with torch.no_grad():
        model(IDS, seen)
    moved_BT = (seen[f"steps.{last}.router.out"] != seen[f"steps.{first - 1}.router.out"]).any(-1)
    assert moved_BT[:, :16].all() and not moved_BT[:, 16:].any()


@pytest.mark.parametrize("form", list(FORMS))
def test_gradients_reach_the_routers_and_all_else(form: str) -> None:
    model = small(form).train()
    output = model(IDS)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.stack([loss, *output.loss_terms.values()]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_without_a_balancing_loss_an_update_moves_the_bias_towards_rare_depths() -> None:
    model: Any = build("mor_published", **SMALL, routing="token", token=TokenChoice(balancing="loss_free"))
    model.after_update({"router_load": torch.tensor([0.8, 0.2, 0.0])})
    assert model.router_bias_R.tolist() == pytest.approx([-0.001, 0.001, 0.001])
    assert "router_bias_R" in model.state_dict()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n_slots": 6}, "sharing"),
        ({"sharing": "sequence", "n_slots": 6, "n_passes": 2}, "model.sharing"),
        ({"expert": ExpertChoice(capacity=(1.0, 0.5))}, "model.expert.capacity"),
        ({"expert": ExpertChoice(capacity=(0.5, 0.6, 0.3))}, "model.expert.capacity"),
        ({"expert": ExpertChoice(capacity=(1.0, 0.6, 0.0))}, "model.expert.capacity"),
        ({"n_heads": 32}, "model.n_heads"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
    ],
)
def test_an_impossible_configuration_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        build("mor_published", **(SMALL | fields))


def test_capacity_is_cut_to_whole_tokens_and_never_to_none() -> None:
    config = build("mor_published", **SMALL, expert=ExpertChoice(capacity=(1.0, 0.6667, 0.6666))).config
    assert config.kept(24) == [24, 16, 15]
    assert config.kept(1) == [1, 1, 1]
    assert build("mor_published", **SMALL).config.kept(24) == [24, 16, 8]
