"""What is made of weights is made once while text is drawn, and anew afterwards."""

from __future__ import annotations

import torch

from homunculi.core.held import Holding, holding
from homunculi.evals.generation import Sampling, generate
from homunculi.models import build

GREEDY = Sampling(temperature=0)


def test_weights_are_made_once_while_they_are_held_and_by_each_use_otherwise() -> None:
    part, made = Holding(), []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.ones(1)

    for _ in range(2):
        part.once("weight", torch.float32, make)
    assert len(made) == 2
    with holding(part):
        for dtype in (torch.float32, torch.float32, torch.bfloat16):
            part.once("weight", dtype, make)
    assert len(made) == 4 and part.held is None


def test_two_texts_drawn_in_turns_hold_the_same_weights_until_both_end() -> None:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=11, d_model=8, n_blocks=1, n_heads=2, max_seq_len=8)
    wanted = [int(token) for token in generate(model, [[3]], 20, GREEDY)]
    first, second = generate(model, [[3]], 20, GREEDY), generate(model, [[3]], 2, GREEDY)
    found = [int(next(first))]
    assert [int(token) for token in second] == wanted[:2]
    assert model.blocks[0].attn.held
    found += [int(token) for token in first]
    assert found == wanted and model.blocks[0].attn.held is None


def test_a_text_drawn_after_an_update_is_of_the_new_weights() -> None:
    torch.manual_seed(0)
    model = build("homunculi", vocab_size=11, d_model=8, n_passes=2, n_heads=2, max_seq_len=8)
    [*generate(model, [[3]], 3, GREEDY)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    drawn = torch.stack([*generate(model, [[3, 1]], 4, GREEDY)], 1)
    ids = torch.tensor([[3, 1]])
    for _ in range(4):
        ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids[:, 2:], drawn)
