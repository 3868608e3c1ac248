"""The readable model of policies: each token chooses what is read, done and written."""

from __future__ import annotations

import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.models.vocabulary.policy import OPERATIONS, Config, Policy


def built(**config: int) -> Policy:
    torch.manual_seed(0)
    return Policy(Config(**({"vocab_size": 19, "n_steps": 2, "d_state": 12} | config))).double().eval()


def ids() -> torch.Tensor:
    return torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(1))


def test_what_is_read_and_done_are_distributions_that_depend_on_the_token() -> None:
    seen = Recording("*.policy.*")
    with torch.no_grad():
        built()(ids(), seen)
    for i in range(2):
        for name in ("read", "operations"):
            weights = seen[f"steps.{i}.policy.{name}"]
            assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert weights.std((0, 1)).min() > 0
        write = seen[f"steps.{i}.policy.write"]
        assert ((write > 0) & (write < 1)).all() and write.std((0, 1)).min() > 0


@pytest.mark.parametrize("j", range(len(OPERATIONS)))
def test_a_policy_can_choose_one_operation(j: int) -> None:
    model = built()
    with torch.no_grad():
        for step in model.steps:
            step.policy.bias[12 + j] = 1e3  # type: ignore[index, union-attr]
        seen = Recording("steps.0.mlp.*")
        model(ids(), seen)
    assert torch.allclose(seen["steps.0.mlp.post"], OPERATIONS[j](seen["steps.0.mlp.pre"][..., j, :]))


def test_operations_are_shared_by_the_steps() -> None:
    two, three = built(), built(n_steps=3)
    per_step = sum(p.numel() for p in two.steps[0].parameters())
    assert three.budget().parameters - two.budget().parameters == per_step
    assert sum(p.numel() for p in two.operations.parameters()) == 8 * 12 * 12


def test_there_are_no_more_operations_than_known() -> None:
    with pytest.raises(InputError, match="n_operations"):
        Config(vocab_size=19, n_operations=9)


def test_documents_do_not_see_each_other() -> None:
    model = built()
    documents_BT = (torch.arange(12) >= 5).long().expand(2, -1)
    with torch.no_grad():
        together, alone = model(ids(), documents_BT=documents_BT).logits, model(ids()[:, 5:]).logits
    assert torch.allclose(together[:, 5:], alone)
    assert not torch.allclose(together[:, 5:], model(ids()).logits[:, 5:])
