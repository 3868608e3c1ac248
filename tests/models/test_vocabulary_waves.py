"""Models of slices: waves change nothing, what no step reads or writes stays, and the control has a table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording
from homunculi.experiments.subject import add_noise
from homunculi.models import build
from homunculi.models.vocabulary.embedded_slices import EmbeddedSlices
from homunculi.models.vocabulary.slices import Slices
from homunculi.parts.readable import rms

IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))


def made(name: str, **config: object) -> Slices | EmbeddedSlices:
    torch.manual_seed(0)
    model = build(name, **({"vocab_size": 61, "n_steps": 8, "d_slice": 14, "max_seq_len": 20} | config)).double().eval()
    add_noise(model, seed=1)
    assert isinstance(model, Slices | EmbeddedSlices)
    return model


@pytest.mark.parametrize("name", ["vocab_slices", "vocab_embedded_slices"])
def test_waves_are_the_function_of_steps_one_by_one(name: str) -> None:
    at_once, one_by_one = made(name), made(name, waves="none")
    one_by_one.load_state_dict(at_once.state_dict())
    assert [step.block for step in at_once.schedule] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert [len(wave) for wave in at_once.waves] == [2, 2, 2, 2] and len(one_by_one.waves) == 8
    torch.testing.assert_close(at_once(IDS).logits, one_by_one(IDS).logits, rtol=1e-12, atol=1e-12)


def test_the_state_is_tapped_once_a_wave_and_a_wave_writes_its_own_words_alone() -> None:
    model, seen = made("vocab_slices"), Recording("embed", "steps.*.resid_*")
    model(IDS, seen)
    last = [wave[-1] for wave in model.waves]
    assert list(seen)[1:] == [f"steps.{i}.{site}" for i in last for site in ("resid_pre", "resid_post")]
    for wave in model.waves:
        before, after = (seen[f"steps.{wave[-1]}.{site}"] for site in ("resid_pre", "resid_post"))
        written = torch.cat([model.reaches[model.schedule[i].block].write.places() for i in wave])
        changed = (after - before).abs().amax((0, 1)) > 0
        assert changed.nonzero()[:, 0].tolist() == sorted(written.tolist())


def test_a_step_reads_its_words_alone() -> None:
    model, site = made("vocab_slices", waves="none"), "steps.3"
    read = model.reaches[3].read.places()

    def said(*pushed: int) -> Tensor:
        def push(x_BTV: Tensor, name: str) -> Tensor:
            return x_BTV.index_add(2, torch.tensor(pushed), x_BTV.new_ones(2, 12, len(pushed)))

        seen = Recording(f"{site}.mlp.out", others={f"{site}.resid_pre": push} if pushed else {})
        model(IDS, seen)
        return seen[f"{site}.mlp.out"]

    assert torch.equal(said(*(v for v in range(61) if v not in read.tolist())), said())
    assert all(not torch.equal(said(int(v)), said()) for v in read)


def test_the_control_starts_anywhere_and_the_others_at_the_word() -> None:
    seen = {name: Recording("embed") for name in ("vocab_slices", "vocab_embedded_slices")}
    models = {name: made(name) for name in seen}
    starts = {name: (model(IDS, seen[name]), seen[name]["embed"])[1] for name, model in models.items()}
    assert torch.equal(starts["vocab_slices"].argmax(-1), IDS)
    assert (starts["vocab_slices"] != 0).sum(-1).eq(1).all()
    control = models["vocab_embedded_slices"]
    assert isinstance(control, EmbeddedSlices)
    expected = rms(control.embed.weight[IDS] @ control.widen.weight.mT)
    torch.testing.assert_close(starts["vocab_embedded_slices"], expected)
    assert (starts["vocab_embedded_slices"] != 0).all()


def test_the_control_counts_its_table_and_the_others_have_none() -> None:
    plain, control = made("vocab_slices").budget(), made("vocab_embedded_slices", d_embed=5).budget()
    assert (plain.embedding_parameters, control.embedding_parameters) == (0, 5 * 61)
    assert control.parameters - plain.parameters == 2 * 5 * 61
    assert control.flops_per_token - plain.flops_per_token == 2 * 5 * 61
