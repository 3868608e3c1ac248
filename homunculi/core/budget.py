"""What a model costs: parameters four ways, FLOPs and cache bytes a token."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Counts of one configuration.

    Attributes:
        parameters: stored parameters, each counted once.
        embedding_parameters: those of token tables that only look up or read out tokens.
        executed_parameters: parameters that multiply activations for one token, counted at each application (a
            block applied three times counts three times; a token table that is only looked up counts 0, as the
            read-out it counts).
        flops_per_token: forward FLOPs a token at full context, a multiply-add as two; attention is counted over
            the whole square, as `torch.utils.flop_counter` does. Training costs three times as much.
        cache_bytes_per_token: bytes of decoding cache that each token adds, in bfloat16.
    """

    parameters: int
    embedding_parameters: int
    executed_parameters: int
    flops_per_token: int
    cache_bytes_per_token: int

    @property
    def non_embedding_parameters(self) -> int:
        return self.parameters - self.embedding_parameters

    def to_json(self) -> dict[str, int]:
        return asdict(self) | {"non_embedding_parameters": self.non_embedding_parameters}


def count_parameters(module: nn.Module) -> int:
    """Stored parameters, a shared tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())
