"""Readable models with maps of waves: the order of the words, harmonics, shared blocks, bands, blended functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.schedule import show
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.experiments.subject import add_noise
from homunculi.models import build
from homunculi.models.vocabulary.soft_ops import FUNCTIONS
from homunculi.parts.fourier import cosine_basis, fourier_basis, places, transform_basis

N_WORDS, N_TOKENS = 31, 9
SMALL = {"vocab_size": N_WORDS, "max_seq_len": N_TOKENS, "n_steps": 2, "n_channels": 12, "n_waves": 7}


def made(name: str, **config: Any) -> Any:
    """Perturbed, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    model = build(name, **(SMALL | config)).double().eval()
    add_noise(model, seed=1)
    return model


def ids() -> Tensor:
    return torch.randint(N_WORDS, (2, N_TOKENS), generator=torch.Generator().manual_seed(3))


def logits(model: Any, ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids_BT).logits
    return found


def seen(model: Any) -> Recording:
    taps = Recording("*")
    with torch.no_grad():
        model(ids(), taps)
    return taps


@pytest.mark.parametrize("name", ["vocab_fourier_memory", "vocab_fft_memory"])
def test_a_shuffled_order_only_gives_the_words_other_numbers(name: str) -> None:
    plain, shuffled = made(name), made(name, word_order="shuffled")
    number_V = places(N_WORDS, "shuffled")
    assert sorted(number_V.tolist()) == list(range(N_WORDS)) and number_V.tolist() != list(range(N_WORDS))
    expected = logits(plain, number_V[ids()])[..., number_V]
    assert torch.allclose(logits(shuffled, ids()), expected, atol=1e-12)
    assert not torch.allclose(logits(plain, ids()), expected, atol=1e-3)


@pytest.mark.parametrize("n_words", [31, 32])
def test_the_basis_of_the_transform_is_the_transform_of_few_harmonics(n_words: int) -> None:
    n_waves = (n_words - 1) // 2
    basis_VW = transform_basis(n_words, n_waves).double()
    x = torch.randn(3, n_words, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.fft.rfft(x)[:, 1 : n_waves + 1]
    assert torch.allclose(x @ basis_VW, torch.cat([found.real, found.imag], -1), atol=1e-5)
    parts = F.pad(found, (1, n_words // 2 - n_waves))
    assert torch.allclose(2 / n_words * (x @ basis_VW) @ basis_VW.mT, torch.fft.irfft(parts, n_words), atol=1e-5)


def test_harmonics_from_half_of_the_vocabulary_on_are_refused() -> None:
    build("vocab_fft_memory", vocab_size=32, n_waves=15)
    with pytest.raises(InputError, match=r"model\.n_waves"):
        build("vocab_fft_memory", vocab_size=32, n_waves=16)


def test_bases_of_large_vocabularies_have_all_digits_of_float32() -> None:
    """Whole turns are taken off in whole numbers here, so that no angle is large."""
    angle = 2 * math.pi * (300 * 4095 % 4096) / 4096
    assert fourier_basis(4096, 300)[-1, -2:].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-7)
    angle = 2 * math.pi * (300 * 8191 % (4 * 4096)) / (4 * 4096)
    assert cosine_basis(4096, 300)[-1, -1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_stored_blocks_are_applied_several_times_in_a_row() -> None:
    model = made("vocab_tied_fourier", n_steps=6, n_uses=3)
    assert show(model.schedule) == "0x3 1x3" and len(model.steps) == 2
    assert len(made("vocab_tied_fourier", n_steps=6, n_uses=1).steps) == 6
    for wrong in ({"n_steps": 5, "n_uses": 2}, {"n_channels": 10, "n_heads": 4}):
        with pytest.raises(InputError):
            build("vocab_tied_fourier", **(SMALL | wrong))


def test_each_use_has_scales_of_its_own() -> None:
    """What belongs to the third use changes nothing before it, though its block was applied before."""
    model = made("vocab_tied_fourier", n_steps=4, n_uses=4)
    before = seen(model)
    owned = ("memory_scale_N", "attn.out"), ("op_scale_N", "resid_post"), ("end_scale_N", "resid_post")
    for name, site in (*owned, ("decay_shifts.2", "attn.z")):
        parameter = model.get_parameter(name)
        kept = parameter.detach().clone()
        with torch.no_grad():
            (parameter[2:3] if name.endswith("_N") else parameter).add_(0.5)
        after = seen(model)
        changed = [tap for tap in before if not torch.equal(after[tap], before[tap])]
        assert changed[0] == f"steps.2.{site}", name
        with torch.no_grad():
            parameter.copy_(kept)


def test_shared_queries_and_keys_have_length_one_over_all_heads() -> None:
    taps = seen(made("vocab_tied_fourier", n_heads=3))
    for site in ("attn.q", "attn.k"):
        q_BTHK = taps[f"steps.1.{site}"]
        assert q_BTHK.shape[2:] == (3, 4)
        assert torch.allclose(q_BTHK.flatten(2).norm(dim=-1), torch.ones(2, N_TOKENS, dtype=q_BTHK.dtype))


def banded() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": N_WORDS, "max_seq_len": N_TOKENS, "n_steps": 2, "n_channels": 12}
    model = build("vocab_bands", **sizes, n_slow=2, n_middle=3, n_fast=4).double().eval()
    add_noise(model, seed=1)
    return model


def outside(x_BTV: Tensor, first: int, last: int) -> float:
    """The share of states that waves `first` … `last` cannot make up."""
    basis_VW = fourier_basis(N_WORDS, last).double()[:, 2 * first - 2 :]
    left_BTV = x_BTV - x_BTV @ basis_VW @ torch.linalg.pinv(basis_VW)
    return (left_BTV.norm() / x_BTV.norm()).item()


def test_the_slow_memory_lets_the_fast_one_through() -> None:
    model = banded()
    assert outside(seen(model)["steps.0.attn.out"], 1, 2) > 0.01
    with torch.no_grad():
        model.steps[0].memories.gate.bias_C.fill_(-1e4)
    taps = seen(model)
    assert taps["steps.0.attn.gate"].abs().max() == 0
    assert outside(taps["steps.0.attn.out"], 1, 2) < 1e-6


def test_the_fast_memory_writes_fast_waves_and_forgets_sooner() -> None:
    model = banded()
    memories = model.steps[0].memories
    with torch.no_grad():
        memories.slow.scale.zero_()
    written_BTV = seen(model)["steps.0.attn.out"]
    assert written_BTV.abs().max() > 0 and outside(written_BTV, 6, 9) < 1e-6 and outside(written_BTV, 1, 5) > 0.9
    fresh = build("vocab_bands", vocab_size=N_WORDS).steps[0].memories
    assert fresh.slow.decay_logit > fresh.fast.decay_logit


@pytest.mark.parametrize(("band", "first", "last"), [(0, 1, 2), (1, 3, 5), (2, 6, 9)])
def test_each_band_writes_its_waves(band: int, first: int, last: int) -> None:
    model = banded()
    with torch.no_grad():
        for other in {0, 1, 2} - {band}:
            model.steps[1].bands.scales[other].zero_()
    assert outside(seen(model)["steps.1.mlp.out"], first, last) < 1e-6


def test_slow_channels_let_fast_channels_through() -> None:
    model = banded()
    with torch.no_grad():
        model.steps[1].bands.gate.bias_C.fill_(-1e4)
    post_BTE = seen(model)["steps.1.mlp.post"]
    slow_BTC, middle_BTC, fast_BTC = post_BTE.chunk(3, -1)
    assert fast_BTC.abs().max() == 0 and slow_BTC.abs().max() > 0 and middle_BTC.abs().max() > 0


def test_before_training_all_functions_have_the_same_share() -> None:
    torch.manual_seed(0)
    model = build("vocab_soft_ops", **SMALL).eval()
    taps = seen(model)
    pre_BTJC = taps["steps.0.mlp.pre"]
    assert pre_BTJC.shape[2] == len(FUNCTIONS) == 8
    mean_BTC = torch.stack([f(pre_BTJC[:, :, j]) for j, f in enumerate(FUNCTIONS)]).mean(0)
    assert torch.allclose(taps["steps.0.mlp.post"], mean_BTC, atol=1e-6)


@pytest.mark.parametrize(("chosen", "function"), [(0, lambda x: x), (3, lambda x: x * x), (7, torch.sigmoid)])
@pytest.mark.parametrize("again", [0, 8])
def test_one_function_alone_can_be_chosen(chosen: int, function: Any, again: int) -> None:
    """Those beyond the eighth are the first ones again, with maps of their own."""
    model = made("vocab_soft_ops", n_ops=16)
    with torch.no_grad():
        model.steps[1].instruction.op_logits_J.fill_(-1e4)[chosen + again] = 0
    taps = seen(model)
    expected = function(taps["steps.1.mlp.pre"][:, :, chosen + again])
    assert torch.allclose(taps["steps.1.mlp.post"], expected, atol=1e-12)
    assert not torch.allclose(taps["steps.0.mlp.post"], function(taps["steps.0.mlp.pre"][:, :, chosen + again]))


def test_all_steps_share_the_functions_maps() -> None:
    model = made("vocab_soft_ops")
    assert [name for name in model.state_dict() if "mix" in name] == ["bank.mix_JCC"]


@pytest.mark.parametrize(
    ("name", "config", "n_parameters"),
    [
        ("vocab_fourier_memory", {}, 328_745),
        ("vocab_tied_fourier", {}, 101_743),
        ("vocab_fft_memory", {}, 328_745),
        ("vocab_fft_memory", {"n_waves": 64}, 918_569),
        ("vocab_bands", {}, 824_417),
        ("vocab_soft_ops", {}, 328_809),
    ],
)
def test_defaults_have_the_published_number_of_parameters(name: str, config: Any, n_parameters: int) -> None:
    model = build(name, vocab_size=1024, **config)
    assert model.budget().parameters == sum(p.numel() for p in model.parameters()) == n_parameters
