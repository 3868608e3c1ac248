"""A readable model of columns, which start from the same word, do not see each other, and vote on what comes next.

A column's step: x[write] += w / √k · Σ_r p_r U_r act(D_r n + b), p = softmax(W n + c), n = rms(g), g = x[read] and what
a decaying memory of such slices adds to it. Step i of column c is the step i·C + c of slices. Then the vote:
x = Σ_c softmax(f − I f)_c x_c of confidences f, where the f that others are inhibited by passes no gradient. The vote
is the same for all tokens. Published as v16 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, C columns, k words of a slice, K those that are read or written, R branches,
M their hidden width, H = R · M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.held import Holding
from ...core.output import Hidden
from ...core.schedule import in_order
from ...core.taps import NO_TAPS, TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.linear import Linear
from ...parts.readable import ACTIVATIONS, ReadableModel, Reading, number, rms
from ...parts.slices import MAP_STD, Reach, SliceMemory, SliceStepConfig, reaches
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SliceStepConfig):
    """Shape of the model.

    Attributes:
        n_steps: of each column.
        n_columns: columns that vote.
        n_branches: of a step's feed-forward part; they share its hidden width.
    """

    n_steps: int = 3
    n_columns: int = 4
    n_branches: int = 4

    def __post_init__(self) -> None:
        self.check()
        check_range("model.n_columns", self.n_columns, low=2)
        check_range("model.n_branches", self.n_branches, low=1)
        if self.vocab_size:
            check_range("model.n_branches", self.n_branches, high=self.hidden_width)

    @property
    def branch_width(self) -> int:
        """Hidden width of a branch."""
        return self.hidden_width // self.n_branches


class Step(Holding):
    """One step of a column: the memory, then the branches."""

    def __init__(self, config: Config, reach: Reach) -> None:
        super().__init__()
        size, width, n = config.slice_size, config.branch_width, config.n_branches
        self.reach, self.activation = reach, ACTIVATIONS[config.activation]
        self.memory = SliceMemory(size, config.first_decay)
        self.gate, self.gate_bias_R = Linear(size, n), nn.Parameter(torch.ones(n))
        self.down = nn.ModuleList(Linear(size, width) for _ in range(n))
        self.up = nn.ModuleList(Linear(width, size) for _ in range(n))
        self.bias_M = nn.Parameter(torch.zeros(width))
        self.write_scale = number(0.1)
        for one in (*self.down, *self.up):
            nn.init.normal_(one.weight, std=MAP_STD)

    def forward(self, x_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        """The state with what the step adds to it."""
        x_BTV = taps("resid_pre", x_BTV)
        n_BTK, dtype = rms(self.memory(self.reach.read.of(x_BTV), taps, reading)), x_BTV.dtype
        p_BTR = taps("mlp.share", (self.gate(n_BTK) + self.gate_bias_R.to(dtype)).softmax(-1))
        down_HK = self.once("down", dtype, lambda: torch.cat([*self.down.parameters()]).to(dtype))
        up_KH = self.once("up", dtype, lambda: torch.cat([*self.up.parameters()], 1).to(dtype))
        n_branches = p_BTR.shape[-1]
        pre_BTH = taps("mlp.pre", F.linear(n_BTK, down_HK) + self.bias_M.to(dtype).repeat(n_branches))
        post_BTRM = taps("mlp.post", self.activation(pre_BTH)).unflatten(-1, (n_branches, -1))
        scale = (self.write_scale * self.reach.write.size**-0.5).to(dtype)
        said_BTK = taps("mlp.out", scale * F.linear((p_BTR[..., None] * post_BTRM).flatten(-2), up_KH))
        return taps("resid_post", x_BTV + self.reach.write.spread(said_BTK))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 2, "n_columns": 3, "d_slice": 40, "d_mlp": 500, "n_branches": 3},
    {"n_steps": 2, "n_columns": 2, "d_slice": 40, "d_mlp": 400, "n_branches": 2, "activation": "swish"},
)


@architecture("vocab_columns", Config, variants=VARIANTS)
class Columns(ReadableModel):
    """Readable, in columns: the schedule goes through one after the other."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        n, n_columns = config.n_steps, config.n_columns
        found = reaches(config.vocab_size, n * n_columns, config.slice_size)
        self.schedule = in_order(range(n * n_columns))
        self.steps = nn.ModuleList(Step(config, reach) for c in range(n_columns) for reach in found[c::n_columns])
        self.confidences = nn.ParameterList(number(0) for _ in range(n_columns))
        self.inhibition_CC = nn.Parameter(torch.zeros(n_columns, n_columns))

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        start_BTV, readings = self.start(ids_BT, taps), [*self.readings(ids_BT, cache, documents_BT)]
        ends, n = [], self.config.n_steps
        for first in range(0, len(self.schedule), n):
            x_BTV = start_BTV
            for i in range(first, first + n):
                x_BTV = self.steps[i](x_BTV, taps.at(i), readings[i])
            ends.append(x_BTV)
        vote_C = taps("control.vote", self.vote()).to(start_BTV.dtype)
        return Hidden(torch.stack([vote * x_BTV for vote, x_BTV in zip(vote_C, ends, strict=True)]).sum(0))

    def vote(self) -> Tensor:
        """What each column's state counts, (C,); together 1."""
        confidence_C = torch.stack([*self.confidences.parameters()])
        return (confidence_C - self.inhibition_CC @ confidence_C.detach()).softmax(0)

    def new_slot(self, batch_size: int) -> DecaySlot:
        size = self.config.slice_size
        return DecaySlot.empty((batch_size, 1, size, size), self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, size = self.config, len(self.schedule), self.config.slice_size
        executed = size * (4 * size + c.n_branches * (2 * c.branch_width + 1))
        return self.counted(n * executed, n * decay_flops(context or c.max_seq_len, size, size))
