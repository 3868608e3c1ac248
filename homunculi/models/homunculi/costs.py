"""Parameters and FLOPs of the flagship, and of the regions that a plain part makes up for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ...core.budget import Budget, count_parameters
from ...parts.attention import window_flops
from ...parts.linear import Linear
from ...parts.memory import sum_flops
from ...parts.pooling import decayed_flops
from .config import SIGNALS, Config
from .regions import Amygdala, Neocortex, Packet, Prefrontal, Temporal

if TYPE_CHECKING:
    from .model import Homunculi


def budget_of(model: Homunculi, context: int | None) -> Budget:
    """What a model costs at a context of that many tokens (None: the longest it takes)."""
    T, config = context or model.config.max_seq_len, model.config
    table, d = model.embed.weight.numel(), config.d_model
    outer = _maps(model.first) + _maps(model.last)
    whole = [model.packet] * config.n_passes if model.packet is not None else []
    per_token = outer + sum(_maps(part) for part in whole) + _maps(model.router) + table
    executed = float(per_token + (_maps(model.amygdala) if model.amygdala is not None else 0))
    flops = 2 * executed + 2 * 4 * T * d + config.n_passes * _running_flops(model, T)
    for r in range(config.n_passes):
        C = model.router.places(r, T) if r in model.router.routed else T
        inside, attended = pass_cost(model, C)
        if config.kv == "shared" and r > 0:
            inside, attended = inside - 2 * config.n_shared * d * d, attended + _rereading(model, C, T)
        executed += C / T * inside
        flops += C / T * (2 * inside + attended)
    kept = 2 + config.n_shared * (sum(config.shares) if config.kv == "per_pass" else 1)
    return Budget(
        parameters=count_parameters(model),
        embedding_parameters=table if model.untied is None else 2 * table,
        executed_parameters=round(executed),
        flops_per_token=round(flops),
        cache_bytes_per_token=round(2 * 2 * d * kept),
    )


def pass_cost(model: Homunculi, n_places: int) -> tuple[float, float]:
    """Of a token that takes a pass: parameters that multiply it, and FLOPs of attention and memory."""
    config = model.config
    everybody: Any = (model.amygdala, model.prefrontal, model.filler, model.paths)
    inside = float(sum(_maps(part) for part in everybody if part is not None))
    n_bound, n_answered = (_through(model, name, n_places) for name in ("memory", "experts"))
    attended = 0.0
    layers: Any = zip(model.temporal, model.neocortex, strict=True)
    for temporal, neocortex in layers:
        inside += _maps(temporal.attn) + n_answered / n_places * _maps(neocortex)
        attended += window_flops(n_places, config.d_model, temporal.window)
        if temporal.memory is not None:
            of_each, maps = temporal.memory.flops_per_token(n_bound), _maps(temporal.memory)
            inside += n_bound / n_places * maps
            attended += n_bound / n_places * (of_each - 2 * maps)
        if neocortex.experts is not None:
            inside += n_answered / n_places * neocortex.experts.active_parameters
    return inside, attended


def _through(model: Homunculi, name: str, n_places: int) -> int:
    """Places of those who go through a region, of a pass with so many places."""
    paths: Any = model.paths
    return paths[name].places(n_places) if name in model.config.paths else n_places


def _rereading(model: Homunculi, n_places: int, n_tokens: int) -> float:
    """What attention to all tokens adds to that among those of a pass, of one of these: FLOPs."""
    more, layers = 0.0, cast("Iterable[Temporal]", model.temporal)
    for temporal in layers:
        windowed = 0 < temporal.window < n_tokens
        queries = n_tokens / n_places if windowed else 1  # with a window all places are multiplied, asking or not
        d = model.config.d_model
        more += queries * window_flops(n_tokens, d, temporal.window) - window_flops(n_places, d, temporal.window)
    return more


def _running_flops(model: Homunculi, n_tokens: int) -> float:
    """FLOPs a token of a pass's running sums: the packet's readings and their number, and the plans."""
    packet = sum_flops(n_tokens) * (model.config.packet_width + 1) if model.packet is not None else 0
    plans = decayed_flops(n_tokens) * model.config.plan_width if model.prefrontal is not None else 0
    return (packet + plans) / n_tokens


def count_filled(config: Config) -> int:
    """Parameters of the regions that `config.filled` asks a plain part to make up for."""
    without = replace(config, filled=())
    with torch.device("meta"):
        return sum(_size(_restored(without, name)) - _size(without) for name in config.filled)


def _restored(config: Config, name: str) -> Config:
    if name == "packet":
        return replace(config, signals=SIGNALS)
    return replace(config, regions=(*config.regions, name))


def _size(config: Config) -> int:
    """Parameters of what a pass is made of."""
    parts: list[nn.Module] = [Temporal(config), Neocortex(config)] * config.n_shared
    parts += [Amygdala(config.d_model)] if config.has("amygdala") else []
    parts += [Prefrontal(config)] if config.has("prefrontal") else []
    parts += [Packet(config)] if config.signals else []
    return sum(count_parameters(part) for part in parts)


def _maps(module: nn.Module) -> int:
    """Parameters of the linear maps inside."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, Linear))
