"""Small language models, honest ones and ones with a known fault.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homunculi.parts.routing import Quota, admit, put_sum, select, take

VOCAB = 17
CONTEXT = 24
D = 8


class Toy(nn.Module):
    """Tokens → embedding → `mix`, which is causal here → logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, D)
        self.out = nn.Linear(D, VOCAB)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.out(self.mix(self.embed(ids_BT)))

    def mix(self, x_BTD: Tensor) -> Tensor:
        seen_T1 = torch.arange(1, x_BTD.shape[1] + 1, dtype=x_BTD.dtype)[:, None]
        return x_BTD + x_BTD.cumsum(1) / seen_T1


# Leaks.


class MeanPooling(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + x_BTD.mean(1, keepdim=True)


class ReversedMask(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        mask_TS = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).triu()
        return F.scaled_dot_product_attention(x_BTD, x_BTD, x_BTD, attn_mask=mask_TS)


class TopKAlongSequence(Toy):
    """Half of the tokens take part, chosen by comparing all of them."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        score_BT = x_BTD.sum(-1)
        kth_B1 = score_BT.topk(max(1, x_BTD.shape[1] // 2), dim=1).values[:, -1:]
        return super().mix(x_BTD * (score_BT >= kth_B1)[..., None])


class OneAhead(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) + F.pad(x_BTD[:, 1:], (0, 0, 0, 1))


class InsideChunks(Toy):
    """Tokens of a chunk of four see each other."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        padded = F.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % 4))
        pooled = padded.unflatten(1, (-1, 4)).mean(2).repeat_interleave(4, 1)
        return x_BTD + pooled[:, : x_BTD.shape[1]]


class BehindZero(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.glance = nn.Parameter(torch.zeros(D))

    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) + self.glance * x_BTD.mean(1, keepdim=True)


class BelowFloat32(Toy):
    """A leak of the size of float32's roundings, in a forward that asks for float32 by name."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.to(torch.float32)
        return super().mix(x_BTD) + 1e-7 * x_BTD.mean(1, keepdim=True)


class BesideHugeLogits(Toy):
    """Some words are ruled out by large negative logits, beside which a leak looks small."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.embed(ids_BT)
        ruled_out_V = torch.arange(VOCAB) >= VOCAB - 3
        return self.out(self.mix(x_BTD) + 1e-4 * x_BTD.mean(1, keepdim=True)).masked_fill(ruled_out_V, -1e12)


class LeaksInTraining(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) + (x_BTD.mean(1, keepdim=True) if self.training else 0.0)


class BatchNormalised(Toy):
    """Statistics of all tokens of the batch in training, running ones in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(self.norm(x_BTD.mT).mT)


class OpensByTraining(Toy):
    """A word about the next token, rounded to whole numbers: always 0 until training has made it loud enough.

    Rounding lets no small word through, so edits move nothing; what is said of a token has no gradient by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.say, self.hear = nn.Linear(D, 1, bias=False), nn.Linear(1, D, bias=False)
        nn.init.zeros_(self.say.weight)

    def mix(self, x_BTD: Tensor) -> Tensor:
        word_BT1 = self.say(x_BTD.detach())
        word_BT1 = word_BT1 + (word_BT1.round() - word_BT1).detach()
        return super().mix(x_BTD) + self.hear(F.pad(word_BT1[:, 1:], (0, 0, 0, 1)))


# Other faults.


class LengthNormaliser(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + x_BTD.cumsum(1) / x_BTD.shape[1]


class BatchCoupled(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) - 0.1 * x_BTD.mean(0, keepdim=True)


class RowsInLine(Toy):
    """Rows follow each other like one text: only later rows see earlier ones."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + x_BTD.flatten(0, 1).cumsum(0).view_as(x_BTD)


class Noisy(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) + 0.1 * torch.randn_like(x_BTD)


class Counting(Toy):
    """Counts its calls in a buffer and makes no use of it."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def mix(self, x_BTD: Tensor) -> Tensor:
        self.calls += 1
        return super().mix(x_BTD)


class Remembering(Toy):
    """Adds what it saw in the call before."""

    before: Tensor | float = 0.0

    def mix(self, x_BTD: Tensor) -> Tensor:
        mixed = super().mix(x_BTD) + self.before
        self.before = x_BTD.detach().mean()
        return mixed


class Diverging(Toy):
    """Gives no numbers in training."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) * (float("nan") if self.training else 1.0)


class OneLengthOnly(Toy):
    """Leaky, and takes rows of exactly the context."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.shape[1] != CONTEXT:
            raise ValueError("whole contexts, please")
        return x_BTD + F.pad(x_BTD[:, 1:], (0, 0, 0, 1))


class OnAKnifeEdge(Toy):
    """A threshold at numbers so large that only rounding says on which side they lie."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD * ((1e9 * x_BTD[..., :1]).sin() > 0))


# Honest models.


class WithoutGradient(Toy):
    def forward(self, ids_BT: Tensor) -> Tensor:
        return super().forward(ids_BT).detach()


class Dropped(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(F.dropout(x_BTD, 0.3, self.training))


class RecurrentSum(Toy):
    """A sum that forgets, step by step."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        state_BD, states = torch.zeros_like(x_BTD[:, 0]), []
        for x_BD in x_BTD.unbind(1):
            state_BD = 0.8 * state_BD + x_BD.tanh()
            states.append(state_BD)
        return x_BTD + torch.stack(states, 1)


class Admitting(Toy):
    """A hard threshold under a quota: tokens that are admitted pass a layer of their own, gathered into one block."""

    quota = Quota(share=0.5, burst=2)

    def __init__(self) -> None:
        super().__init__()
        self.router, self.layer = nn.Linear(D, 1), nn.Linear(D, D)

    def mix(self, x_BTD: Tensor) -> Tensor:
        mixed_BTD, n_tokens = super().mix(x_BTD), x_BTD.shape[1]
        score_BT = self.router(mixed_BTD)[..., 0]
        quota_BT = self.quota.at(torch.arange(n_tokens)).expand_as(score_BT)
        chosen = select(admit(score_BT > 0, quota_BT), self.quota.of_first(n_tokens))
        gate_BC1 = take(score_BT[..., None], chosen.index_BC).sigmoid()
        return put_sum(mixed_BTD, gate_BC1 * self.layer(take(mixed_BTD, chosen.index_BC)).tanh(), chosen)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, D)
        self.lstm = nn.LSTM(D, D, num_layers=2, dropout=0.2, batch_first=True)
        self.out = nn.Linear(D, VOCAB)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids_BT))[0])


class FrozenMask(Toy):
    """Its causal mask is a frozen parameter: perturbing it would build a leak."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_TS = nn.Parameter(torch.ones(CONTEXT, CONTEXT).tril(), requires_grad=False)

    def mix(self, x_BTD: Tensor) -> Tensor:
        n = x_BTD.shape[1]
        return x_BTD + self.mask_TS[:n, :n] @ x_BTD / CONTEXT


class Uncopyable(Toy):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.dropout = nn.Dropout(0.3)

    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(self.dropout(x_BTD))


class LeakyUncopyable(Uncopyable):
    def mix(self, x_BTD: Tensor) -> Tensor:
        return super().mix(x_BTD) + x_BTD.mean(1, keepdim=True)


class OnlyFloat32(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().mix(x_BTD)


class FloatInside(Toy):
    """Computes in float32 inside, as many models do in their norms."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        rms = x_BTD.float().square().mean(-1, keepdim=True).sqrt()
        table_T1 = torch.arange(x_BTD.shape[1], dtype=torch.float32)[:, None].cos()
        return super().mix((x_BTD.float() / rms).to(x_BTD.dtype) + table_T1)


class EvenLengthsOnly(Toy):
    def mix(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.shape[1] % 2:
            raise ValueError("an even number of tokens, please")
        return super().mix(x_BTD)


def bigram(ids_BT: Tensor) -> Tensor:
    """A plain function: the logits of the next token by the present one."""
    table_VV = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    return table_VV[ids_BT]


def bag_of_words(ids_BT: Tensor) -> Tensor:
    """A plain function that counts the words of the whole row."""
    return F.one_hot(ids_BT, VOCAB).float().mean(1, keepdim=True).expand(-1, ids_BT.shape[1], -1)


def constant(ids_BT: Tensor) -> Tensor:
    """A plain function that does not look at its input."""
    return torch.ones(*ids_BT.shape, VOCAB)
