"""A convolution over positions, each channel by itself: a token mixes its own input with those of the last few.

y_t = b + Σ_j c_j x_{t−j}, j = 0 … K−1, where nothing stands before the first token.

On a GPU a pair of kernels, written in Triton, walks along the positions with the last K inputs in registers, so that an
input is read once. Going back, the gradients of input, coefficients and bias take one walk; each program leaves its own
sums over its positions, which are then added in order: the same bits each time. Elsewhere torch's own code runs.

Legend: B batch, T positions, V channels, K taps, P earlier inputs that are kept (K − 1), S sums of one program each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding
from .readable import Reading

WEIGHT_STD = 0.02
MOST_TAPS = 32  # that fit in the registers of a kernel
# How the kernels are cut: channels of a program, positions that it walks, rows at a time, warps.
FORWARD_CUT = {"BLOCK": 256, "SPAN": 128, "ROWS": 16, "num_warps": 4}
BACKWARD_CUT = {"BLOCK": 256, "SPAN": 128, "ROWS": 8, "num_warps": 4}


@dataclass(slots=True)
class ConvSlot:
    """The last inputs of each row, the latest last; 0 where there were none."""

    last_BPV: Tensor

    @classmethod
    def empty(cls, like: Tensor, shape_BPV: tuple[int, int, int], dtype: torch.dtype) -> Self:
        """Of rows that have read nothing, on the device of `like`."""
        return cls(like.new_zeros(shape_BPV, dtype=dtype))

    def keep(self, all_BTV: Tensor, valid_BT: Tensor | None) -> None:
        """Take over the last of the inputs that were kept and of the valid ones that came after them."""
        n_kept = self.last_BPV.shape[1]
        n_new = all_BTV.shape[1] - n_kept
        if valid_BT is None:
            self.last_BPV.copy_(all_BTV[:, n_new:].clone())
            return
        place_BP = valid_BT.sum(1)[:, None] + torch.arange(n_kept, device=all_BTV.device)
        self.last_BPV.copy_(all_BTV.gather(1, place_BP[..., None].expand(-1, -1, all_BTV.shape[2])))


class CausalConv(Holding):
    """The convolution of one step.

    Args:
        n_channels: width of its input.
        n_taps: how many tokens it mixes, the token itself included.
    """

    def __init__(self, n_channels: int, n_taps: int) -> None:
        super().__init__()
        self.weight_V1K = nn.Parameter(WEIGHT_STD * torch.randn(n_channels, 1, n_taps))  # the token itself comes last
        self.bias_V = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x_BTV: Tensor, reading: Reading, scale_V: Tensor | None = None) -> Tensor:
        """Convolve, (B, T, V).

        Args:
            x_BTV: its input.
            reading: its slot is a `ConvSlot` or None.
            scale_V: learned factors of the output; multiplied into the coefficients, they cost a token nothing.
        """
        weight_KV, bias_V = self._scaled(scale_V)
        if reading.slot is None:
            if reading.documents_BT is not None:
                return convolve_documents(x_BTV, weight_KV, bias_V, reading.documents_BT)
            return convolve(x_BTV, weight_KV, bias_V)
        slot: ConvSlot = reading.slot
        all_BTV = torch.cat([slot.last_BPV.to(x_BTV.dtype), x_BTV], 1)
        slot.keep(all_BTV, reading.valid_BT)
        if x_BTV.shape[1] == 1:
            return (bias_V + (all_BTV * weight_KV).sum(1, keepdim=True)).to(x_BTV.dtype)
        return convolve(all_BTV, weight_KV, bias_V)[:, weight_KV.shape[0] - 1 :]

    def _scaled(self, scale_V: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coefficients (K, V), the token's own last, and bias."""
        dtype = self.bias_V.dtype
        scale = self.bias_V.new_ones(()) if scale_V is None else scale_V
        weight_KV = self.once("weight", dtype, lambda: (self.weight_V1K[:, 0].mT * scale).contiguous())
        return weight_KV, self.once("bias", dtype, lambda: self.bias_V * scale)


def convolve(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor) -> Tensor:
    """The convolution of whole rows.

    Args:
        x_BTV: its input.
        weight_KV: coefficients, the token's own last; their type may be wider than the input's.
        bias_V: of the same type.
    """
    if fits(x_BTV, weight_KV.shape[0]):
        return torch.ops.homunculi.causal_conv(x_BTV, weight_KV, bias_V)
    return _plain(x_BTV, weight_KV, bias_V)


def convolve_documents(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor, documents_BT: Tensor) -> Tensor:
    """As `convolve`, where tokens of another document count as nothing."""
    n_tokens, dtype = x_BTV.shape[1], x_BTV.dtype
    y_BTV = x_BTV * weight_KV[-1].to(dtype) + bias_V.to(dtype)
    for lag in range(1, min(weight_KV.shape[0], n_tokens)):
        same_BT1 = (documents_BT[:, lag:] == documents_BT[:, :-lag])[..., None]
        seen_BTV = F.pad(x_BTV[:, :-lag] * same_BT1, (0, 0, lag, 0))
        y_BTV = torch.addcmul(y_BTV, seen_BTV, weight_KV[-1 - lag].to(dtype))
    return y_BTV


def fits(x_BTV: Tensor, n_taps: int) -> bool:
    """Whether the kernels do, here and now: on a GPU, for more than one token and not too many taps."""
    some = x_BTV.shape[1] > 1 and 1 < n_taps <= MOST_TAPS
    return some and x_BTV.is_cuda and x_BTV.dtype != torch.float64 and _has_triton()


def _plain(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor) -> Tensor:
    dtype, n_taps = x_BTV.dtype, weight_KV.shape[0]
    padded_BVT = F.pad(x_BTV.mT, (n_taps - 1, 0))
    return F.conv1d(padded_BVT, weight_KV.mT[:, None].to(dtype), bias_V.to(dtype), groups=x_BTV.shape[2]).mT


@torch.library.custom_op("homunculi::causal_conv", mutates_args=())
def _convolved(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor) -> Tensor:
    x_BTV, weight_KV = x_BTV.contiguous(), weight_KV.contiguous()
    y_BTV = torch.empty_like(x_BTV)
    n_rows, n_tokens, n_channels = x_BTV.shape
    cut = FORWARD_CUT
    with _on(x_BTV):
        _forward_kernel()[(-(-n_channels // cut["BLOCK"]), -(-n_tokens // cut["SPAN"]), n_rows)](
            x_BTV, weight_KV, bias_V.contiguous(), y_BTV, n_tokens, n_channels, TAPS=weight_KV.shape[0], **cut
        )
    return y_BTV


@torch.library.custom_op("homunculi::causal_conv_backward", mutates_args=())
def _differentiated(g_BTV: Tensor, x_BTV: Tensor, weight_KV: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input, and of coefficients and bias in one: (K + 1, V)."""
    g_BTV, x_BTV, weight_KV = g_BTV.contiguous(), x_BTV.contiguous(), weight_KV.contiguous()
    dx_BTV = torch.empty_like(x_BTV)
    n_rows, n_tokens, n_channels = x_BTV.shape
    n_taps, cut = weight_KV.shape[0], BACKWARD_CUT
    n_spans = -(-n_tokens // cut["SPAN"])
    sums_SKV = weight_KV.new_empty(n_rows * n_spans, n_taps + 1, n_channels)
    with _on(x_BTV):
        _backward_kernel()[(-(-n_channels // cut["BLOCK"]), n_spans, n_rows)](
            g_BTV, x_BTV, weight_KV, dx_BTV, sums_SKV, n_tokens, n_channels, TAPS=n_taps, **cut
        )
    return dx_BTV, sums_SKV.sum(0)


@_convolved.register_fake
def _(x_BTV: Tensor, weight_KV: Tensor, bias_V: Tensor) -> Tensor:
    return torch.empty_like(x_BTV, memory_format=torch.contiguous_format)


@_differentiated.register_fake
def _(g_BTV: Tensor, x_BTV: Tensor, weight_KV: Tensor) -> tuple[Tensor, Tensor]:
    n_taps, n_channels = weight_KV.shape
    return torch.empty_like(x_BTV, memory_format=torch.contiguous_format), weight_KV.new_empty(n_taps + 1, n_channels)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _go_back(ctx: Any, g_BTV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x_BTV, weight_KV, bias_V = ctx.saved_tensors
    if torch.is_grad_enabled():  # this gradient will be differentiated itself
        y_BTV = _plain(x_BTV, weight_KV, bias_V)
        dx, dweight, dbias = torch.autograd.grad(y_BTV, (x_BTV, weight_KV, bias_V), g_BTV, create_graph=True)
        return dx, dweight, dbias
    dx_BTV, sum_KV = torch.ops.homunculi.causal_conv_backward(g_BTV, x_BTV, weight_KV)
    return dx_BTV, sum_KV[:-1], sum_KV[-1]


_convolved.register_autograd(_go_back, setup_context=_remember)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _forward_kernel() -> Any:
    """Made at first use, since Triton need not be there."""
    triton, tl = _triton()

    @triton.jit
    @no_type_check  # tuples grow in it
    def causal_conv_kernel(
        x, weight, bias, y, n_tokens, n_channels,
        TAPS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        at_V = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside_V = at_V < n_channels
        start = tl.program_id(1) * SPAN
        end = tl.minimum(start + SPAN, n_tokens)
        row = tl.program_id(2).to(tl.int64) * n_tokens * n_channels
        x += row
        y += row
        bias_V = tl.load(bias + at_V, mask=inside_V, other=0.0).to(tl.float32)
        taps = ()
        for k in tl.static_range(TAPS):
            taps += (tl.load(weight + k * n_channels + at_V, mask=inside_V, other=0.0).to(tl.float32),)
        before = ()
        for k in tl.static_range(TAPS - 1):
            t = start - (TAPS - 1) + k
            before += (tl.load(x + t * n_channels + at_V, mask=inside_V & (t >= 0), other=0.0).to(tl.float32),)
        t = start
        while t < end:
            seen = before
            for i in tl.static_range(ROWS):
                here = inside_V & (t + i < end)
                seen += (tl.load(x + (t + i) * n_channels + at_V, mask=here, other=0.0).to(tl.float32),)
            for i in tl.static_range(ROWS):
                sum_V = bias_V
                for k in tl.static_range(TAPS):
                    sum_V += taps[k] * seen[i + k]
                tl.store(y + (t + i) * n_channels + at_V, sum_V.to(y.dtype.element_ty), mask=inside_V & (t + i < end))
            before = seen[ROWS:]
            t += ROWS

    return causal_conv_kernel


@cache
def _backward_kernel() -> Any:
    triton, tl = _triton()

    @triton.jit
    @no_type_check  # tuples grow in it
    def causal_conv_backward_kernel(
        g, x, weight, dx, sums, n_tokens, n_channels,
        TAPS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        at_V = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside_V = at_V < n_channels
        start = tl.program_id(1) * SPAN
        end = tl.minimum(start + SPAN, n_tokens)
        row = tl.program_id(2).to(tl.int64) * n_tokens * n_channels
        g += row
        x += row
        dx += row
        lags, sums_of_lags, after = (), (), ()
        for j in tl.static_range(TAPS):
            tap = weight + (TAPS - 1 - j) * n_channels
            lags += (tl.load(tap + at_V, mask=inside_V, other=0.0).to(tl.float32),)
            sums_of_lags += (tl.zeros([BLOCK], tl.float32),)
        sum_V = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(TAPS - 1):
            known = inside_V & (start + j < n_tokens)
            after += (tl.load(g + (start + j) * n_channels + at_V, mask=known, other=0.0).to(tl.float32),)
        t = start
        while t < end:
            seen, inputs = after, ()
            for i in tl.static_range(ROWS):
                late = t + TAPS - 1 + i
                known, here = inside_V & (late < n_tokens), inside_V & (t + i < end)
                seen += (tl.load(g + late * n_channels + at_V, mask=known, other=0.0).to(tl.float32),)
                inputs += (tl.load(x + (t + i) * n_channels + at_V, mask=here, other=0.0).to(tl.float32),)
            for i in tl.static_range(ROWS):
                back_V = tl.zeros([BLOCK], tl.float32)
                for j in tl.static_range(TAPS):
                    back_V += lags[j] * seen[i + j]
                tl.store(
                    dx + (t + i) * n_channels + at_V, back_V.to(dx.dtype.element_ty), mask=inside_V & (t + i < end)
                )
                sum_V += tl.where(t + i < end, seen[i], 0.0)
            grown = ()
            for j in tl.static_range(TAPS):
                sum_of_lag = sums_of_lags[j]
                for i in tl.static_range(ROWS):
                    sum_of_lag += inputs[i] * seen[i + j]
                grown += (sum_of_lag,)
            sums_of_lags = grown
            after = seen[ROWS:]
            t += ROWS
        sums += (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * (TAPS + 1) * n_channels
        for j in tl.static_range(TAPS):
            tl.store(sums + (TAPS - 1 - j) * n_channels + at_V, sums_of_lags[j], mask=inside_V)
        tl.store(sums + TAPS * n_channels + at_V, sum_V, mask=inside_V)

    return causal_conv_backward_kernel


def _triton() -> tuple[Any, Any]:
    """By name: an exported folder must not ask for a package that it can do without."""
    return import_module("triton"), import_module("triton.language")
