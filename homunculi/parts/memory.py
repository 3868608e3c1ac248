"""Associative memory: a matrix a head that every token decays, writes to and reads.

Two rules. `gated`, gated linear attention (Yang et al. 2023): M_t = α_t M_{t−1} + β_t k_t v_tᵀ. `delta`, the gated
delta rule (Yang et al. 2024): what the memory already answers to k_t is taken out first, M_t = α_t M_{t−1} + k_t u_tᵀ
with u_t = β_t (v_t − α_t M_{t−1}ᵀ k_t). Both are read as M_tᵀ q_t.

A sequence is cut into chunks of S tokens. With l_t = Σ log α from the start of the chunk to token t, a write of token s
is worth exp(l_t − l_s) at token t, so inside a chunk the reads are one product with a triangular matrix; between chunks
only the memory at their borders is needed. Exponents are differences that are never positive: nothing can overflow.

Legend: B batch, C tokens of this call (places of a block), D width, H heads, K head width, N chunks, S tokens a chunk.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding
from ..core.taps import TapPoint
from . import one_token
from .linear import Linear
from .norm import RMSNorm

CHUNK = 64
# Time constants at the start, in tokens, spread over the heads.
SHORTEST, LONGEST = 16.0, 1024.0
# The most a token can make a memory forget, in nats: exp(−20) of it is left.
MOST_FORGOTTEN = 20.0


class Chunks(NamedTuple):
    """What the tokens of all chunks bring.

    Attributes:
        q_BHNSK, k_BHNSK: of length 1.
        v_BHNSK: values.
        since_BHNS: l_t, the sum of log α from the start of the chunk; never positive, float32 or wider.
        write_BHNS: β, not negative, of the same type.
        document_B1NS: of each token; None: all are of one.
    """

    q_BHNSK: Tensor
    k_BHNSK: Tensor
    v_BHNSK: Tensor
    since_BHNS: Tensor
    write_BHNS: Tensor
    document_B1NS: Tensor | None = None

    def ends(self) -> Tensor | None:
        """The document at the end of each chunk, after that of what came before the call: none, (B, 1, N + 1)."""
        return None if self.document_B1NS is None else F.pad(self.document_B1NS[..., -1], (1, 0), value=-1)

    def reached(self) -> Tensor:
        """How much of the memory before a chunk is left at each of its tokens, (B, H, N, S)."""
        left_BHNS, ends_B1N = self.since_BHNS.exp(), self.ends()
        return left_BHNS if ends_B1N is None else left_BHNS * (self.document_B1NS == ends_B1N[..., :-1, None])

    def kept(self) -> Tensor:
        """Keys scaled by how much of a write is left at the end of its chunk, (B, H, N, S, K)."""
        left_BHNS = (self.since_BHNS[..., -1:] - self.since_BHNS).clamp(max=0).exp()
        if self.document_B1NS is not None:
            left_BHNS = left_BHNS * (self.document_B1NS == self.document_B1NS[..., -1:])
        return self.k_BHNSK * left_BHNS[..., None].to(self.k_BHNSK.dtype)


class AssociativeMemory(Holding):
    """The memory of one step. A token reads what was written up to and with itself.

    A head's read-out is normalised to the same size however much it holds. A memory binds the key of a token to the
    value of the same token: to bind neighbours, its input must already have mixed them.

    Args:
        d_model: width of the residual stream.
        n_heads: memories side by side.
        d_head: width of keys, queries and values.
        rule: how a token writes.
    """

    def __init__(self, d_model: int, n_heads: int, d_head: int, *, rule: Literal["gated", "delta"] = "gated") -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head, self.rule = d_model, n_heads, d_head, rule
        self.q = Linear(d_model, n_heads * d_head)
        self.k = Linear(d_model, n_heads * d_head)
        self.v = Linear(d_model, n_heads * d_head)
        self.forget = Linear(d_model, n_heads)
        self.write = Linear(d_model, n_heads)
        self.o = Linear(n_heads * d_head, d_model)
        self.norm = RMSNorm(d_head)
        rate_H = torch.linspace(math.log(LONGEST), math.log(SHORTEST), n_heads).neg().exp()
        self.forget_bias_H = nn.Parameter(rate_H.expm1().log())  # its softplus is the rate
        self.write_bias_H = nn.Parameter(torch.zeros(n_heads))

    def forward(
        self,
        x_BCD: Tensor,
        write_BC1: Tensor | None,
        head_gate_BCH: Tensor | None,
        taps: TapPoint,
        taken_BC: Tensor | None = None,
        state_BHKK: Tensor | None = None,
        documents_BC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Write and read in order.

        Args:
            x_BCD: normalised input.
            write_BC1: factor of the write strength, not negative; None: 1.
            head_gate_BCH: factor of each head's read-out; None: 1.
            taps: named points of this step.
            taken_BC: False where a place is empty: it neither writes nor lets time pass, and its output means nothing.
            state_BHKK: the memory left by earlier calls, keys by values; None: empty.
            documents_BC: document of each token, in one piece each; every one begins with an empty memory. None: one.

        Returns:
            The read-out (B, C, D) and the memory after the last token (B, H, K, K), float32 or wider.
        """
        q, k, v, forget, write = (_in_chunks(t) for t in self._bring(x_BCD, write_BC1, taps, taken_BC))
        chunks = Chunks(q, k, v, running_sum(-forget), write)
        if documents_BC is not None:
            chunks = chunks._replace(document_B1NS=_in_chunks(documents_BC[..., None]))
        if state_BHKK is None:
            state_BHKK = self.empty_state(len(x_BCD))
        write_in = write_gated if self.rule == "gated" else write_delta
        u_BHNSK, before_BHNKK, after_BHKK = write_in(chunks, state_BHKK.to(chunks.since_BHNS.dtype))
        z_BHNSK = read(chunks, u_BHNSK, before_BHNKK)
        z_BCHK = z_BHNSK.movedim(1, 3).flatten(1, 2)[:, : x_BCD.shape[1]]
        return self._give_out(z_BCHK, head_gate_BCH, taps), after_BHKK

    def remember(
        self,
        x_BCD: Tensor,
        write_BC1: Tensor | None,
        head_gate_BCH: Tensor | None,
        taps: TapPoint,
        state: tuple[Tensor, Tensor | None, Tensor | None],
    ) -> Tensor:
        """`forward` of one token a row, where `one_token.fits`, with the read-out alone as its result.

        Args:
            state: memories, changed in place; which rows of theirs are meant (A,), None: all; which of those have a
                token (A, 1), None: all.
        """
        state_BHKK, rows_A, taken_A1 = state
        *qkv, forget_BCH, write_BCH = self._bring(x_BCD, write_BC1, taps, taken_A1)
        q_BHK, k_BHK, v_BHK = (t[:, 0] for t in qkv)
        kept_BH, write_BH = (-forget_BCH[:, 0]).exp(), write_BCH[:, 0]
        z_BHK = one_token.remember(
            (q_BHK, k_BHK, v_BHK), kept_BH, write_BH, state_BHKK, rows_A, delta=self.rule == "delta"
        )
        return self._give_out(z_BHK[:, None], head_gate_BCH, taps)

    def _give_out(self, z_BCHK: Tensor, head_gate_BCH: Tensor | None, taps: TapPoint) -> Tensor:
        z_BCHK = self.norm(z_BCHK)
        if head_gate_BCH is not None:
            z_BCHK = z_BCHK * head_gate_BCH[..., None].to(z_BCHK.dtype)
        z_BCHK = taps("memory.z", z_BCHK)
        return taps("memory.out", self.o(z_BCHK.flatten(2)))

    def empty_state(self, n_rows: int) -> Tensor:
        """A memory that holds nothing, (n_rows, H, K, K), for the state of a decoding cache too."""
        weight = self.q.weight
        shape = (n_rows, self.n_heads, self.d_head, self.d_head)
        return torch.zeros(shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)

    def flops_per_token(self, n_tokens: int) -> int:
        """Forward FLOPs a token in a call of `n_tokens`, as `torch.utils.flop_counter` counts them (it does not count
        the triangular system of the delta rule)."""
        n, s = _cut(n_tokens)
        K, H = self.d_head, self.n_heads
        maps = 2 * self.d_model * (4 * H * K + 2 * H)
        inside, across = (4, 4) if self.rule == "gated" else (6, 6)
        between = 2 * (n + 1) ** 2 * K * K if self.rule == "gated" else 0
        sums = n * sum_flops(s) + (sum_flops(n + 1) if self.rule == "gated" else 0)
        return maps + round(H * (n * s * K * (inside * s + across * K) + between + sums) / n_tokens)

    def _bring(
        self, x_BCD: Tensor, write_BC1: Tensor | None, taps: TapPoint, taken_BC: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, C, H, K); how much a token makes forgotten, in nats, and β (B, C, H)."""
        q_BCHK, k_BCHK, v_BCHK, forget_BCH, write_BCH = self._project(x_BCD)
        q_BCHK, k_BCHK = F.normalize(torch.stack([q_BCHK, k_BCHK]), dim=-1).unbind()
        q_BCHK, k_BCHK, v_BCHK = taps("memory.q", q_BCHK), taps("memory.k", k_BCHK), taps("memory.v", v_BCHK)
        forget_BCH = taps("memory.forget", F.softplus(forget_BCH)).clamp(0, MOST_FORGOTTEN)
        write_BCH = write_BCH.sigmoid()
        if write_BC1 is not None:
            write_BCH = write_BCH * write_BC1
        write_BCH = taps("memory.write", write_BCH)
        if self.rule == "delta":  # beyond 1 it would take out more than is there
            write_BCH = write_BCH.clamp(max=1)
        if taken_BC is not None:
            forget_BCH, write_BCH = forget_BCH * taken_BC[..., None], write_BCH * taken_BC[..., None]
        return q_BCHK, k_BCHK, v_BCHK, forget_BCH, write_BCH

    def _project(self, x_BCD: Tensor) -> tuple[Tensor, ...]:
        """All five maps of the input by one product; the two a head in float32 or wider, with their biases."""
        maps = (self.q, self.k, self.v, self.forget, self.write)
        wide = torch.promote_types(x_BCD.dtype, torch.float32)
        weight = self.once("maps", x_BCD.dtype, lambda: torch.cat([m.weight for m in maps]).to(x_BCD.dtype))
        joined = F.linear(x_BCD, weight)
        *qkv, forget_BCH, write_BCH = joined.split([m.out_features for m in maps], dim=-1)
        heads = (t.unflatten(-1, (self.n_heads, self.d_head)) for t in qkv)
        return *heads, forget_BCH.to(wide) + self.forget_bias_H, write_BCH.to(wide) + self.write_bias_H


def write_gated(chunks: Chunks, state_BHKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each token writes (B, H, N, S, K), the memory before each chunk (B, H, N, K, K) and after the last.

    The memory at a border is the sum of what the chunks before it wrote, decayed since: a triangular product again."""
    u_BHNSK = chunks.v_BHNSK * chunks.write_BHNS[..., None].to(chunks.v_BHNSK.dtype)
    written_BHNKK = (chunks.kept().mT @ u_BHNSK).to(state_BHKK.dtype)
    items = torch.cat([state_BHKK[:, :, None], written_BHNKK], dim=2)
    since_BHN = running_sum(F.pad(chunks.since_BHNS[..., -1], (1, 0)))
    borders = (decay_between(since_BHN, chunks.ends()) @ items.flatten(3)).view_as(items)
    return u_BHNSK, borders[:, :, :-1], borders[:, :, -1]


def write_delta(chunks: Chunks, state_BHKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `write_gated`, for the delta rule.

    Inside a chunk the u_t solve (1 + A) u = β v − β exp(l) k M, A_ts = β_t exp(l_t − l_s) k_t·k_s below the diagonal,
    M the memory before it. The system is solved for all chunks at once, M put in from chunk to chunk."""
    wide, (k, v) = state_BHKK.dtype, (t.to(state_BHKK.dtype) for t in (chunks.k_BHNSK, chunks.v_BHNSK))
    since, write = chunks.since_BHNS, chunks.write_BHNS[..., None]
    system = (write * decay_between(since, chunks.document_B1NS) * (chunks.k_BHNSK @ chunks.k_BHNSK.mT)).tril(-1)
    sides = torch.cat([write * v, write * chunks.reached()[..., None] * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    values, answers = (half.unbind(2) for half in solved.split(v.shape[-1], dim=-1))
    kept, left = chunks.kept().to(wide).mT.unbind(2), chunks.reached()[..., -1].unbind(2)
    u, before = [], []
    for n in range(since.shape[2]):
        before.append(state_BHKK)
        u.append(values[n] - answers[n] @ state_BHKK)
        state_BHKK = left[n][..., None, None] * state_BHKK + kept[n] @ u[n]
    return torch.stack(u, 2).to(chunks.v_BHNSK.dtype), torch.stack(before, 2), state_BHKK


def read(chunks: Chunks, u_BHNSK: Tensor, before_BHNKK: Tensor) -> Tensor:
    """What each token reads, (B, H, N, S, K): from its own chunk, and from the memory before it."""
    q_BHNSK, dtype = chunks.q_BHNSK, u_BHNSK.dtype
    scores_BHNSS = ((q_BHNSK @ chunks.k_BHNSK.mT) * decay_between(chunks.since_BHNS, chunks.document_B1NS)).to(dtype)
    earlier_BHNSK = q_BHNSK * chunks.reached()[..., None].to(dtype)
    return scores_BHNSS @ u_BHNSK + earlier_BHNSK @ before_BHNKK.to(dtype)


def decay_between(since: Tensor, document: Tensor | None = None) -> Tensor:
    """exp(l_t − l_s) for s ≤ t of the same document, else 0: (…, S) → (…, S, S)."""
    n = since.shape[-1]
    hidden = torch.ones(n, n, dtype=torch.bool, device=since.device).triu(1)
    if document is not None:
        hidden = hidden | (document[..., :, None] != document[..., None, :])
    between = (since[..., :, None] - since[..., None, :]).clamp(max=0)
    return between.masked_fill(hidden, float("-inf")).exp()


def running_sum(x: Tensor) -> Tensor:
    """Sums up to and with each place of the last axis. By products with triangles of ones: `cumsum` has no
    deterministic form on a GPU."""
    n = x.shape[-1]
    size = min(CHUNK, n)
    n_pieces = -(-n // size)
    pieces = F.pad(x, (0, n_pieces * size - n)).unflatten(-1, (n_pieces, size))
    sums = pieces @ x.new_ones(size, size).triu()
    if n_pieces > 1:
        sums = sums + (sums[..., -1] @ x.new_ones(n_pieces, n_pieces).triu(1))[..., None]
    return sums.flatten(-2)[..., :n]


def sum_flops(n: int) -> int:
    """FLOPs of a running sum of `n` numbers."""
    size = min(CHUNK, n)
    n_pieces = -(-n // size)
    return 2 * n_pieces * size * size + (2 * n_pieces * n_pieces if n_pieces > 1 else 0)


def _cut(n_tokens: int) -> tuple[int, int]:
    """How many chunks, and how many tokens each: multiples of 8 where there are several, with little left empty."""
    n_chunks = -(-n_tokens // CHUNK)
    return n_chunks, n_tokens if n_chunks == 1 else 8 * -(-n_tokens // (8 * n_chunks))


def _in_chunks(t: Tensor) -> Tensor:
    """(B, C, H) or (B, C, H, K) → (B, H, N, S) or (B, H, N, S, K), zeros where tokens are missing."""
    n_chunks, size = _cut(t.shape[1])
    padded = F.pad(t, [0, 0] * (t.dim() - 2) + [0, n_chunks * size - t.shape[1]])
    return padded.unflatten(1, (n_chunks, size)).movedim(3, 1)
