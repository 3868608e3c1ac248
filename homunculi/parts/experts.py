"""Feed-forward experts of which each token uses a few, none of them ever full.

No expert has a capacity, so no token loses its expert to another one and rows of a batch stay independent. The
(token, expert) pairs are laid out expert by expert and multiplied by one of three products with the same result: a
grouped product where the device has one, equal blocks of rows where shapes have to be known in advance, and a product
an expert otherwise.

Legend: B batch, C tokens of a call (places of a block), D width, E experts, A experts used by a token, M hidden width
of an expert, N = B · C tokens, P rows of the layout, S rows a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding
from ..core.taps import TapPoint
from .mlp import ACTIVATIONS


class Choice(NamedTuple):
    """Which experts each token uses.

    Attributes:
        indices_BCA: their numbers, the most wanted first.
        weights_BCA: factors of their outputs, which carry the gradient to the router; 0 where a place is empty.
    """

    indices_BCA: Tensor
    weights_BCA: Tensor


class Layout(NamedTuple):
    """Pairs of token and expert side by side, expert by expert.

    Attributes:
        row_NA: the row of each pair.
        token_P: the token of each row; any where the row is empty.
        ends_E: where the room of each expert ends.
        size: every expert's rows start at a multiple of it.
    """

    row_NA: Tensor
    token_P: Tensor
    ends_E: Tensor
    size: int


class Experts(Holding):
    """Σ over the chosen experts of weight · expert(x), each expert out(f(in(x))) or out(silu(gate(x)) · in(x)).

    Each expert has matrices of its own, so that an optimiser for matrices sees them: `in` and `gate` (D, M), `out`
    (M, D), normal with variance 1 / inputs at the start.

    Args:
        d_model: width of the residual stream.
        d_expert: hidden width of one expert.
        n_experts: experts in all.
        n_active: experts used by a token, at most n_experts.
        activation: swiglu or one of `ACTIVATIONS`.
    """

    bias_E: Tensor

    def __init__(self, d_model: int, d_expert: int, n_experts: int, n_active: int, activation: str) -> None:
        super().__init__()
        self.n_experts, self.n_active, self.activation = n_experts, n_active, activation
        shapes = {"gate": (d_model, d_expert), "in": (d_model, d_expert), "out": (d_expert, d_model)}
        self.maps = nn.ModuleDict()
        for name in shapes if activation == "swiglu" else ("in", "out"):
            drawn = torch.randn(n_experts, *shapes[name]) * shapes[name][0] ** -0.5
            self.maps[name] = nn.ParameterList(matrix.clone() for matrix in drawn)
        self.register_buffer("bias_E", torch.zeros(n_experts))

    def forward(
        self, x_BCD: Tensor, logits_BCE: Tensor, taps: TapPoint, taken_BC: Tensor | None = None
    ) -> tuple[Tensor, Choice]:
        """Send every token through its experts.

        Args:
            x_BCD: normalised input.
            logits_BCE: how much the router wants each expert; finite.
            taps: named points of this step.
            taken_BC: False where a place is empty: its output is 0.
        """
        choice = self.choose(logits_BCE, taps, taken_BC)
        x_ND, indices_NA = x_BCD.flatten(0, 1), choice.indices_BCA.flatten(0, 1)
        layout = lay_out(indices_NA, self.n_experts, self._block_size(x_ND, indices_NA.numel()))
        rows_PM = self._hidden(_Spread.apply(x_ND, layout.token_P, layout.row_NA), layout)
        if taps.wants("experts.post"):
            rows_PM = _show(rows_PM, layout, taps, x_BCD.shape[:2])
        rows_PD = multiply(rows_PM, self._weight(rows_PM.dtype, "out"), layout)
        y_NAD = _Collect.apply(rows_PD, layout.row_NA, layout.token_P)
        y_ND = (y_NAD * choice.weights_BCA.flatten(0, 1)[..., None].to(y_NAD.dtype)).sum(1)
        return taps("experts.out", y_ND.view_as(x_BCD)), choice

    def choose(self, logits_BCE: Tensor, taps: TapPoint, taken_BC: Tensor | None = None) -> Choice:
        """The experts with the largest logit + bias. The bias decides which, never how much.

        The weights of a token are the softmax over its chosen logits. Over a single one that would be 1 whatever the
        router says, so a lone expert's weight is 2σ(logit): 1 at a logit of 0.
        """
        wide_BCE = logits_BCE.to(torch.promote_types(logits_BCE.dtype, torch.float32))
        indices_BCA = largest(wide_BCE.detach() + self.bias_E, self.n_active)
        chosen_BCA = wide_BCE.gather(-1, indices_BCA)
        weights_BCA = chosen_BCA.softmax(-1) if self.n_active > 1 else 2 * chosen_BCA.sigmoid()
        weights_BCA = taps("experts.weights", weights_BCA)
        if taken_BC is not None:
            weights_BCA = weights_BCA * taken_BC[..., None]
        return Choice(indices_BCA, weights_BCA)

    def load(self, indices_BCA: Tensor, taken_BC: Tensor | None = None) -> Tensor:
        """Share of the choices that fell on each expert, (E,), float32; all 0 if no place is taken."""
        chose_BCE = (indices_BCA[..., None] == _numbers(self.n_experts, indices_BCA)).sum(-2)
        if taken_BC is not None:
            chose_BCE = chose_BCE * taken_BC[..., None]
        counts_E = chose_BCE.flatten(0, 1).sum(0).float()
        return counts_E / counts_E.sum().clamp(min=1)

    @torch.no_grad()
    def update_bias(self, load_E: Tensor, rate: float) -> None:
        """Make experts with less than the mean load more wanted by `rate` and the others less (Wang et al. 2024)."""
        self.bias_E += rate * (load_E.mean() - load_E).sign()

    @property
    def active_parameters(self) -> int:
        """Parameters that multiply one token's activations."""
        return sum(p.numel() for p in self.parameters()) // self.n_experts * self.n_active

    def flops_per_token(self) -> int:
        """Forward FLOPs a token: those of its experts, as counted on a CPU. Blocks of rows add up to a quarter."""
        return 2 * self.active_parameters

    def _weight(self, dtype: torch.dtype, *names: str) -> Tensor:
        """All experts' matrices of those names side by side, (E, inputs, outputs)."""

        def make() -> Tensor:
            stacked = [torch.stack(list(self.maps[name].parameters())) for name in names]
            return (stacked[0] if len(stacked) == 1 else torch.cat(stacked, dim=-1)).to(dtype)

        return self.once(" ".join(names), dtype, make)

    def _block_size(self, x_ND: Tensor, n_pairs: int) -> int:
        """1 where an expert may have any number of rows without waiting for the device; else a power of 2 from 8 to
        128, so that of many rows at most a fifth is empty."""
        eager_cpu = x_ND.device.type == "cpu" and not torch.compiler.is_compiling()
        if eager_cpu or (x_ND.device.type == "cuda" and self._fits_grouped_product(x_ND)):
            return 1
        return min(128, max(8, 1 << max(1, n_pairs // (4 * self.n_experts)).bit_length() - 1))

    def _fits_grouped_product(self, x_ND: Tensor) -> bool:
        aligned = all(p.shape[-1] % 8 == 0 for p in self.parameters())
        return x_ND.dtype == torch.bfloat16 and aligned and _has_grouped_product(x_ND.device.index or 0)

    def _hidden(self, rows_PD: Tensor, layout: Layout) -> Tensor:
        """What the output weights multiply, (P, M)."""
        if self.activation != "swiglu":
            return ACTIVATIONS[self.activation](multiply(rows_PD, self._weight(rows_PD.dtype, "in"), layout))
        both_EDM = self._weight(rows_PD.dtype, "gate", "in")
        gate_PM, in_PM = multiply(rows_PD, both_EDM, layout).chunk(2, dim=-1)
        return F.silu(gate_PM) * in_PM


def largest(x_BCE: Tensor, n: int) -> Tensor:
    """Where the n largest of the last axis stand, the largest first; of equal ones the first. Of few among few this
    is less work than `topk`, which sorts."""
    found = []
    for _ in range(n):
        found.append(x_BCE.argmax(-1, keepdim=True))
        x_BCE = x_BCE.scatter(-1, found[-1], float("-inf"))
    return torch.cat(found, -1)


def lay_out(indices_NA: Tensor, n_experts: int, size: int) -> Layout:
    """Give each pair a row: pairs of an expert side by side in the order of their tokens.

    The number of rows is fixed: with blocks of `size`, every expert may leave one block partly empty.
    """
    n_pairs = indices_NA.numel()
    n_rows = n_pairs if size == 1 else (n_pairs // size + n_experts) * size
    expert_N = indices_NA.flatten()
    held_E = (expert_N == _numbers(n_experts, indices_NA)[:, None]).sum(1)
    room_E = (held_E + size - 1) // size * size
    ends_E = room_E.cumsum(0)
    shift_E = (ends_E - room_E) - (held_E.cumsum(0) - held_E)
    order_N = expert_N.argsort(stable=True)
    row_N = torch.empty_like(order_N).scatter(0, order_N, _numbers(n_pairs, order_N) + shift_E[expert_N[order_N]])
    token_N = torch.arange(n_pairs, device=row_N.device) // indices_NA.shape[1]
    token_P = torch.zeros(n_rows, dtype=torch.long, device=row_N.device).index_copy(0, row_N, token_N)
    return Layout(row_N.view_as(indices_NA), token_P, ends_E, size)


def multiply(rows_PK: Tensor, weight_EKL: Tensor, layout: Layout) -> Tensor:
    """Each row by its expert's matrix, (P, L). What empty rows give means nothing."""
    if layout.size > 1:
        return in_blocks(rows_PK, weight_EKL, layout)
    return (grouped if rows_PK.device.type == "cuda" else one_by_one)(rows_PK, weight_EKL, layout)


def grouped(rows_PK: Tensor, weight_EKL: Tensor, layout: Layout) -> Tensor:
    """One kernel for all experts that reads where each begins on the device."""
    return F.grouped_mm(rows_PK, weight_EKL, offs=layout.ends_E.int())


def in_blocks(rows_PK: Tensor, weight_EKL: Tensor, layout: Layout) -> Tensor:
    """A batch of products of equal blocks, each with a copy of its expert's matrix."""
    n_blocks = len(rows_PK) // layout.size
    starts = layout.size * _numbers(n_blocks, layout.ends_E)
    expert = torch.searchsorted(layout.ends_E, starts, right=True).clamp(max=len(weight_EKL) - 1)
    return torch.bmm(rows_PK.view(n_blocks, layout.size, -1), weight_EKL.index_select(0, expert)).flatten(0, 1)


def one_by_one(rows_PK: Tensor, weight_EKL: Tensor, layout: Layout) -> Tensor:
    """A product an expert. Their sizes are read on the host, for which only a GPU would have to wait."""
    sizes = layout.ends_E.diff(prepend=layout.ends_E.new_zeros(1)).tolist()
    return torch.cat([rows @ weight for rows, weight in zip(rows_PK.split(sizes), weight_EKL, strict=True)])


@torch.compiler.assume_constant_result
def _has_grouped_product(index: int) -> bool:
    """Hopper and Blackwell; elsewhere torch's grouped product waits for the device."""
    return torch.cuda.get_device_capability(index)[0] in (9, 10)


def _numbers(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def _show(rows_PM: Tensor, layout: Layout, taps: TapPoint, shape_BC: tuple[int, ...]) -> Tensor:
    """Hidden activations in the order of the tokens, (B, C, A, M), for a listener, and back into rows."""
    post_NAM = _Collect.apply(rows_PM, layout.row_NA, layout.token_P)
    post_BCAM = taps("experts.post", post_NAM.unflatten(0, shape_BC))
    return rows_PM.index_copy(0, layout.row_NA.flatten(), post_BCAM.flatten(0, 2))


class _Spread(torch.autograd.Function):
    """Tokens (N, D) into rows (P, D). The gradient of a token is gathered from its rows, so that none is added twice
    in an order nobody knows."""

    @staticmethod
    def forward(x_ND: Tensor, token_P: Tensor, row_NA: Tensor) -> Tensor:
        return x_ND.index_select(0, token_P)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g_PD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        token_P, row_NA = ctx.saved_tensors
        return _Collect.apply(g_PD, row_NA, token_P).sum(1), None, None


class _Collect(torch.autograd.Function):
    """Rows (P, D) back to their tokens (N, A, D). Empty rows get a gradient of 0."""

    @staticmethod
    def forward(rows_PD: Tensor, row_NA: Tensor, token_P: Tensor) -> Tensor:
        return rows_PD.index_select(0, row_NA.flatten()).unflatten(0, row_NA.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g_NAD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        row_NA, token_P = ctx.saved_tensors
        empty_PD = g_NAD.new_zeros(len(token_P), g_NAD.shape[-1])
        return empty_PD.index_copy(0, row_NA.flatten(), g_NAD.flatten(0, 1)), None, None
