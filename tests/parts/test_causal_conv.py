"""The convolution over positions: what it is a sum of, its memory, and its kernels, run by Triton's interpreter.

Legend: B batch, T positions, V channels, K taps.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.parts import causal_conv
from homunculi.parts.causal_conv import CausalConv, ConvSlot, convolve, convolve_documents
from homunculi.parts.readable import Reading

N_TAPS = 5


def drawn(dtype: torch.dtype = torch.float64, n_tokens: int = 23, n_channels: int = 13) -> list[Tensor]:
    """Input, coefficients and bias that want gradients, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, n_tokens, n_channels), (N_TAPS, n_channels), (n_channels,), (2, n_tokens, n_channels))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [*(t.requires_grad_() for t in drawn[:3]), drawn[3]]


def by_hand(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor, documents_BT: Tensor) -> Tensor:
    """One product at a time."""
    y_BTV = torch.zeros_like(x_BTV)
    for b in range(x_BTV.shape[0]):
        for t in range(x_BTV.shape[1]):
            y_BTV[b, t] = bias_V
            for lag in range(min(len(weight_KV), t + 1)):
                if documents_BT[b, t - lag] == documents_BT[b, t]:
                    y_BTV[b, t] += weight_KV[-1 - lag] * x_BTV[b, t - lag]
    return y_BTV


@torch.no_grad()
def test_a_token_mixes_itself_and_the_few_before_it() -> None:
    x, weight, bias, _ = drawn()
    torch.testing.assert_close(convolve(x, weight, bias), by_hand(x, weight, bias, torch.zeros(2, 23)))


@torch.no_grad()
def test_documents_do_not_see_each_other() -> None:
    x, weight, bias, _ = drawn()
    documents = (torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) < 0.3).cumsum(1)
    found = convolve_documents(x, weight, bias, documents)
    torch.testing.assert_close(found, by_hand(x, weight, bias, documents))
    assert not torch.allclose(found, convolve(x, weight, bias))


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_what_each_has_read() -> None:
    torch.manual_seed(0)
    conv = CausalConv(13, N_TAPS).double()
    conv.weight_V1K.mul_(50)
    conv.bias_V.normal_()
    x_BTV, scale_V = torch.randn(3, 12, 13).double(), torch.rand(13).double()
    whole = conv(x_BTV, Reading(), scale_V)
    n_read = torch.tensor([7, 2, 0])
    slot = ConvSlot.empty(x_BTV, (3, N_TAPS - 1, 13), torch.float64)
    valid_BT = torch.arange(7) < n_read[:, None]
    first = conv(x_BTV[:, :7], Reading(slot, None, valid_BT), scale_V)
    for row, n in enumerate(n_read.tolist()):
        torch.testing.assert_close(first[row, :n], whole[row, :n])
    at = n_read
    for n_tokens in (1, 3, 1):
        place_BT = at[:, None] + torch.arange(n_tokens)
        given = x_BTV.gather(1, place_BT[..., None].expand(-1, -1, 13))
        expected = whole.gather(1, place_BT[..., None].expand(-1, -1, 13))
        torch.testing.assert_close(conv(given, Reading(slot), scale_V), expected)
        at = at + n_tokens


@pytest.fixture
def kernels(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run on a CPU too, cut so small that rows and channels need several programs."""
    monkeypatch.setattr(causal_conv, "fits", lambda x, n_taps: True)
    for cut in ("FORWARD_CUT", "BACKWARD_CUT"):
        monkeypatch.setattr(causal_conv, cut, {"BLOCK": 8, "SPAN": 9, "ROWS": 3, "num_warps": 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [2, 9, 14])
def test_kernels_give_sums_and_gradients_of_the_plain_form(kernels: None, dtype: torch.dtype, n_tokens: int) -> None:
    x, weight, bias, g = drawn(torch.float64, n_tokens)
    x, g = x.detach().to(dtype).double().requires_grad_(), g.to(dtype).double()
    y = causal_conv._plain(x, weight, bias)
    expected = [y, *torch.autograd.grad(y, (x, weight, bias), g)]
    narrow = x.detach().to(dtype).requires_grad_(), weight.detach().float().requires_grad_(), bias.detach().float()
    narrow[2].requires_grad_()
    y = convolve(*narrow)
    assert y.dtype == dtype
    found = [y, *torch.autograd.grad(y, narrow, g.to(dtype))]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    for name, ours, theirs in zip(("output", "input", "weight", "bias"), found, expected, strict=True):
        wide = {"rtol": 1e-5, "atol": 1e-5} if name in ("weight", "bias") else tolerance
        torch.testing.assert_close(ours.double(), theirs, **wide, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_of_kernels_are_the_same_bits_twice_and_can_be_differentiated(kernels: None) -> None:
    x, weight, bias, g = drawn(torch.float32, 12, 9)
    y = convolve(x, weight, bias)
    once, twice = (torch.autograd.grad(y, (x, weight, bias), g, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    seconds = []
    for form in (convolve, causal_conv._plain):
        y = form(x, weight, bias)
        (dx,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(dx.square().sum(), weight)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


def test_kernels_are_part_of_a_compiled_graph(kernels: None) -> None:
    torch._dynamo.reset()
    x, weight, bias, g = drawn(torch.float32, 12, 9)

    def twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolve(convolve(x, weight, bias).tanh(), weight, bias)

    found = []
    for form in (twice, torch.compile(twice, backend="aot_eager", fullgraph=True)):
        y = form(x, weight, bias)
        found.append([y, *torch.autograd.grad(y, (x, weight, bias), g)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
