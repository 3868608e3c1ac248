"""Kernels for decoding on a GPU: one token a row, the cache read where it lies and only as far as it is filled.

`attend`: a token's attention. Torch's own attention reads a cache to its last place and hides most of it by a mask, and
of some rows of a batch it needs a copy. `remember`: one step of an associative memory, which changes it in place.

Both are bound by memory: a byte of the cache is read once and, of the memory, written once. They are written in Triton,
which comes with torch on a GPU; where it is missing, or gradients are asked for, `fits` is false and the general code
runs.

Legend: A rows of the batch that have a token, H query heads, G key-value heads, L places of a slot, S places of a
piece, K head width, B all rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

PIECE = 64  # places that a program reads at once


def fits(x: Tensor, n_tokens: int) -> bool:
    """Whether the kernels do for `n_tokens` tokens a row of that type, here and now: one, on a GPU, in inference."""
    alone = n_tokens == 1 and x.is_cuda and x.dtype != torch.float64
    return alone and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _has_triton()


def attend(
    q_AHK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, last_A: Tensor, rows_A: Tensor | None = None, window: int = 0
) -> Tensor:
    """softmax(q kᵀ / √K) v of one query a row, (A, H, K), in float32 inside.

    Args:
        last_A: the last place that a row sees, integers.
        rows_A: the rows of the cache that are asked; None: all, one a query.
        window: how many places a row sees at most; 0: all up to the last.
    """
    n_rows, n_heads, width = q_AHK.shape
    q_AHK, out_AHK = q_AHK.contiguous(), torch.empty_like(q_AHK, memory_format=torch.contiguous_format)
    asked = last_A if rows_A is None else rows_A
    with _on(q_AHK):
        _attend_kernel()[(n_rows, n_heads)](
            q_AHK,
            k_BGLK,
            v_BGLK,
            out_AHK,
            last_A,
            asked,
            *k_BGLK.stride()[:3],
            *v_BGLK.stride()[:3],
            width**-0.5,
            window,
            HEADS=n_heads,
            SHARED=n_heads // k_BGLK.shape[1],
            SOME_ROWS=rows_A is not None,
            WIDTH=width,
            PADDED=1 << (width - 1).bit_length(),
            PIECE=PIECE,
        )
    return out_AHK


def remember(
    qkv_AHK: tuple[Tensor, Tensor, Tensor],
    keep_AH: Tensor,
    write_AH: Tensor,
    memory_BHKK: Tensor,
    rows_A: Tensor | None = None,
    *,
    delta: bool = False,
) -> Tensor:
    """What a token reads of a memory after its own write, (A, H, K). Changes `memory_BHKK`, contiguous.

    Args:
        keep_AH: α, the share of the memory that is left before the write; write_AH: β.
        rows_A: the rows of the memory; None: all.
        delta: the delta rule, see `homunculi.parts.memory`.
    """
    q_AHK, k_AHK, v_AHK = (t.contiguous() for t in qkv_AHK)
    n_rows, n_heads, width = q_AHK.shape
    out_AHK = torch.empty_like(v_AHK)
    keep_AH, write_AH = keep_AH.contiguous(), write_AH.contiguous()
    with _on(q_AHK):
        _remember_kernel()[(n_rows, n_heads)](
            q_AHK,
            k_AHK,
            v_AHK,
            out_AHK,
            keep_AH,
            write_AH,
            memory_BHKK,
            keep_AH if rows_A is None else rows_A,
            HEADS=n_heads,
            SOME_ROWS=rows_A is not None,
            DELTA=delta,
            WIDTH=width,
            PADDED=1 << (width - 1).bit_length(),
        )
    return out_AHK


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _attend_kernel() -> Any:
    """Made at first use, since Triton need not be there."""
    triton, tl = _triton()

    @triton.jit
    def attend_kernel(  # type: ignore[no-untyped-def]
        q, k, v, out, last, rows,
        k_row, k_head, k_place, v_row, v_head, v_place,
        scale, window,
        HEADS: tl.constexpr, SHARED: tl.constexpr, SOME_ROWS: tl.constexpr,  # type: ignore[name-defined]
        WIDTH: tl.constexpr, PADDED: tl.constexpr, PIECE: tl.constexpr,  # type: ignore[name-defined]
    ):  # fmt: skip
        a, h = tl.program_id(0), tl.program_id(1)
        row = (tl.load(rows + a) if SOME_ROWS else a).to(tl.int64)
        end = tl.load(last + a).to(tl.int32) + 1
        start = tl.maximum(end - window, 0) if window > 0 else end * 0
        at_K, places_S = tl.arange(0, PADDED), tl.arange(0, PIECE)
        inside_K = at_K < WIDTH
        q_K = tl.load(q + (a * HEADS + h) * WIDTH + at_K, mask=inside_K, other=0.0).to(tl.float32) * scale
        k += row * k_row + (h // SHARED) * k_head
        v += row * v_row + (h // SHARED) * v_head
        highest, total = float("-inf"), 0.0
        sum_K = tl.zeros([PADDED], tl.float32)
        while start < end:
            place_S = start + places_S
            seen_SK = (place_S < end)[:, None] & inside_K[None, :]
            k_SK = tl.load(k + place_S[:, None] * k_place + at_K[None, :], mask=seen_SK, other=0.0).to(tl.float32)
            v_SK = tl.load(v + place_S[:, None] * v_place + at_K[None, :], mask=seen_SK, other=0.0).to(tl.float32)
            score_S = tl.where(place_S < end, tl.sum(k_SK * q_K[None, :], 1), float("-inf"))
            now = tl.maximum(highest, tl.max(score_S, 0))
            left, weight_S = tl.exp(highest - now), tl.exp(score_S - now)
            total = total * left + tl.sum(weight_S, 0)
            sum_K = sum_K * left + tl.sum(weight_S[:, None] * v_SK, 0)
            highest = now
            start += PIECE
        tl.store(out + (a * HEADS + h) * WIDTH + at_K, (sum_K / total).to(out.dtype.element_ty), mask=inside_K)

    return attend_kernel


@cache
def _remember_kernel() -> Any:
    triton, tl = _triton()

    @triton.jit
    def remember_kernel(  # type: ignore[no-untyped-def]
        q, k, v, out, keep, write, memory, rows,
        HEADS: tl.constexpr, SOME_ROWS: tl.constexpr, DELTA: tl.constexpr,  # type: ignore[name-defined]
        WIDTH: tl.constexpr, PADDED: tl.constexpr,  # type: ignore[name-defined]
    ):  # fmt: skip
        a, h = tl.program_id(0), tl.program_id(1)
        row = (tl.load(rows + a) if SOME_ROWS else a).to(tl.int64)
        at_K = tl.arange(0, PADDED)
        inside_K = at_K < WIDTH
        inside_KK = inside_K[:, None] & inside_K[None, :]
        here = (a * HEADS + h) * WIDTH + at_K
        q_K = tl.load(q + here, mask=inside_K, other=0.0).to(tl.float32)
        k_K = tl.load(k + here, mask=inside_K, other=0.0).to(tl.float32)
        v_K = tl.load(v + here, mask=inside_K, other=0.0).to(tl.float32)
        alpha, beta = tl.load(keep + a * HEADS + h).to(tl.float32), tl.load(write + a * HEADS + h).to(tl.float32)
        cells = memory + (row * HEADS + h) * WIDTH * WIDTH + at_K[:, None] * WIDTH + at_K[None, :]
        left_KK = alpha * tl.load(cells, mask=inside_KK, other=0.0).to(tl.float32)
        if DELTA:
            v_K -= tl.sum(left_KK * k_K[:, None], 0)
        new_KK = left_KK + k_K[:, None] * (beta * v_K)[None, :]
        tl.store(cells, new_KK.to(memory.dtype.element_ty), mask=inside_KK)
        tl.store(out + here, tl.sum(new_KK * q_K[:, None], 0).to(out.dtype.element_ty), mask=inside_K)

    return remember_kernel


def _triton() -> tuple[Any, Any]:
    """By name: an exported folder must not ask for a package that it can do without."""
    return import_module("triton"), import_module("triton.language")
