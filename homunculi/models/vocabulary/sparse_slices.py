"""A readable model of slices that keeps few words, writes more where it is unsure, and is asked after every step.

x[write_i] += H / ln V · w / √k · W_up act(W_down rms(g) + b), g = x[read_i] and what a decaying memory of such slices
adds to it; then all but the s largest |x| become 0. The share of uncertainty, H / ln V, passes no gradient. Published
as v15 of the vocabulary-space models, where H is the entropy of softmax(x). But that of a word alone, √V at its place,
is 5 % of ln V for 61 words and 6e-11 of it for 1024: such a model cannot write, so it does not learn. Here H is that
of the read-out unless the configuration says otherwise.

In training a loss is added: λ Σ_i γ^(N−1−i) CE(read-out after step i, next token). Next tokens are those of the call
itself, so the last position, whose next token the model is not given, has no part in it; the original, which is handed
the targets, counts it, and adds the loss in evaluation as well. Here evaluation reports the cross-entropy alone.

Legend: B batch, T positions, V vocabulary, N steps, k words of a slice, K those that are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.readable import ReadableModel
from ...parts.slices import SliceStep, SliceStepConfig, reaches
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SliceStepConfig):
    """Shape of the model.

    Attributes:
        n_kept: words that a state keeps after a step, beside those as strong as the last of them; 0: an eighth of the
            vocabulary.
        unsure_of: whose entropy H is: that of the read-out of the state, or that of the state itself.
        step_loss: λ, weight of the loss after the last step; 0: only the read-out is asked.
        step_loss_decay: γ, what a step's loss counts of that of the next.
    """

    n_kept: int = 0
    unsure_of: Literal["readout", "state"] = "readout"
    step_loss: float = 0.1
    step_loss_decay: float = 0.9

    def __post_init__(self) -> None:
        self.check()
        check_range("model.n_kept", self.n_kept, low=0)
        if self.unsure_of not in ("readout", "state"):
            raise InputError(f"model.unsure_of: {self.unsure_of!r} is none of readout, state")
        check_range("model.step_loss", self.step_loss, low=0)
        check_range("model.step_loss_decay", self.step_loss_decay, low=0, high=1)

    @property
    def number_kept(self) -> int:
        """Words that a state keeps."""
        return self.n_kept or max(1, self.vocab_size // 8)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 4, "d_slice": 50, "d_mlp": 500, "n_kept": 40},
    {
        "n_steps": 3,
        "d_slice": 50,
        "d_mlp": 2400,
        "unsure_of": "state",
        "first_scale": 0.3,
        "n_kept": 61,
        "step_loss": 0.0,
    },
)


@architecture("vocab_sparse_slices", Config, variants=VARIANTS)
class SparseSlices(ReadableModel):
    """Readable, in slices, with few words kept."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reaches = reaches(config.vocab_size, config.n_steps, config.slice_size)
        self.steps = nn.ModuleList(SliceStep(config, reach) for reach in self.reaches)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV, after = self.start(ids_BT, taps), []
        for i, reading in enumerate(self.readings(ids_BT, cache, documents_BT)):
            here = taps.at(i)
            x_BTV = here("resid_pre", x_BTV)
            unsure_BT = here("uncertainty", self.uncertainty(x_BTV))
            said_BTK = unsure_BT[..., None] * self.steps[i](x_BTV, here, reading)
            x_BTV = strongest(x_BTV + self.reaches[i].write.spread(said_BTK), self.config.number_kept)
            x_BTV = here("resid_post", x_BTV)
            after.append(x_BTV)
        asked = self.training and cache is None and self.config.step_loss > 0 and ids_BT.shape[1] > 1
        return Hidden(x_BTV, {"steps": self.loss_after(after, ids_BT)} if asked else {})

    @torch.no_grad()
    def uncertainty(self, x_BTV: Tensor) -> Tensor:
        """H / ln V, from 0, one word, to 1, all alike; (B, T), without gradient."""
        wide = torch.promote_types(x_BTV.dtype, torch.float32)
        logits_BTV = self.readout(x_BTV) if self.config.unsure_of == "readout" else x_BTV.to(wide)
        log_p_BTV = logits_BTV.log_softmax(-1)
        entropy_BT = -(log_p_BTV.exp() * log_p_BTV).sum(-1)
        return (entropy_BT / math.log(max(2, self.config.vocab_size))).to(x_BTV.dtype)

    def loss_after(self, after: list[Tensor], ids_BT: Tensor) -> Tensor:
        """λ Σ_i γ^(N−1−i) CE(state after step i), over all positions but the last."""
        loss, next_N = ids_BT.new_zeros((), dtype=torch.float32), ids_BT[:, 1:].flatten()
        for x_BTV in after:
            said = F.cross_entropy(self.readout(x_BTV[:, :-1]).flatten(0, 1), next_N)
            loss = self.config.step_loss_decay * loss + said
        return self.config.step_loss * loss

    def new_slot(self, batch_size: int) -> DecaySlot:
        size = self.config.slice_size
        return DecaySlot.empty((batch_size, 1, size, size), self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c = self.config
        mixing = decay_flops(context or c.max_seq_len, c.slice_size, c.slice_size)
        return self.counted(c.n_steps * c.step_size, c.n_steps * mixing)


def strongest(x_BTV: Tensor, n: int) -> Tensor:
    """The n largest |x| of each state, and what equals the smallest of them; the rest, and its gradient, is 0."""
    if n >= x_BTV.shape[-1]:
        return x_BTV
    size_BTV = x_BTV.detach().abs()
    least_BT1 = size_BTV.topk(n, sorted=False).values.amin(-1, keepdim=True)
    return x_BTV.masked_fill(size_BTV < least_BT1, 0)
