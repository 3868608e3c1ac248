"""Small random models of the causal language-model families that the installed transformers knows, made offline.

A family is what `AutoModelForCausalLM` knows by a model type. Each model is wrapped as a module from token ids to
logits that calls it as users do: `model(ids)`, no attention mask, the default attention, all else by its own defaults.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.errors import InputError, optional
from homunculi.interop.family_configs import DRAWN, entry, small_config

CONTEXT = 72  # longer than all windows and chunks of the small configurations, and than the usual fixed chunk of 64
SEED = 0

_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


@dataclass(frozen=True, slots=True)
class Family:
    """A small random model of one family, as users call it.

    Attributes:
        name: the model type.
        model: module from ids (B, T) to logits (B, T, V); with `memory`, a dictionary, it reads on from what the
            dictionary holds and leaves there what the next call needs, nothing where the family keeps no cache.
        made: the model's class, or why there is none.
        vocab_size: ids below it are text.
        context: tokens to ask at.
        notes: what a reader should know about how it is asked.
        causes: why a column says no, by column, where that is known.
        exact: makes the same function in a form that float64 can compute.
        alternative: a setting that users may want instead, in words, and what makes the model with it.
    """

    name: str
    model: nn.Module
    made: str
    vocab_size: int = DRAWN
    context: int = CONTEXT
    notes: tuple[str, ...] = ()
    causes: Mapping[str, str] = field(default_factory=dict)
    exact: Callable[[], nn.Module] | None = None
    alternative: tuple[str, Callable[[], nn.Module]] | None = None


def names() -> list[str]:
    """Model types of all causal language models that the installed transformers knows, sorted.

    Raises:
        InputError: transformers is not installed.
    """
    return sorted(_mapping())


def versions() -> dict[str, str]:
    """Of the packages that decide what a family is."""
    transformers = optional("transformers", "hf")
    return {"transformers": str(transformers.__version__), "torch": str(torch.__version__)}


def build(name: str) -> Family:
    """The small random model of a family. Nothing is downloaded.

    Raises:
        InputError: there is no such family, or it cannot be asked by token ids alone.
        Exception: whatever its code raises for the small configuration.
    """
    if name not in _mapping():
        raise InputError(f"{name}: no such family in transformers {versions()['transformers']}")
    known = entry(name)
    if "refused" in known:
        raise InputError(known["refused"])
    _quiet()
    config, model = _model(name, known, {})
    asked, notes = _as_users_call(model)
    if "part" in known:
        notes = (f"from_config refuses the family's own configuration: made from its {known['part']}", *notes)
    both_ways = {"causal": "reads both ways: is_decoder is False by default"} if _may_encode(config) else {}
    return Family(
        name,
        asked,
        type(model).__name__,
        notes=notes,
        causes={**both_ways, **known.get("causes", {})},
        exact=lambda: _exact(name, known, asked.arguments),
        alternative=_alternative(name, known, config),
    )


def _mapping() -> Mapping[str, Any]:
    auto: Any = optional("transformers.models.auto.modeling_auto", "hf")
    return dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _quiet() -> None:
    optional("transformers", "hf").logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def _model(name: str, known: Mapping[str, Any], more: Mapping[str, Any]) -> tuple[Any, Any]:
    """Configuration and freshly drawn model, in evaluation mode."""
    transformers: Any = optional("transformers", "hf")
    config_type = transformers.CONFIG_MAPPING[name]
    wanted = {**known.get("config", {}), **more}
    torch.manual_seed(SEED)
    if "part" in known:
        config = small_config(type(getattr(config_type(), known["part"])), wanted)
        model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_type](config)
    else:
        config = small_config(config_type, wanted)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return config, model.eval()


def _as_users_call(model: Any) -> tuple[Asked, tuple[str, ...]]:
    """The model as a function of ids alone; without its cache where the plain call fails and that one does not."""
    ids_BT = torch.arange(CONTEXT)[None] % DRAWN
    failure: Exception | None = None
    for arguments in ({}, {"use_cache": False}):
        try:
            with torch.no_grad():
                model(ids_BT, **arguments)
        except Exception as error:  # any: it is another project's code, asked whether it runs
            failure = failure or error
            continue
        notes = () if failure is None else (f"model(ids) fails ({_line(failure)}): asked with use_cache=False",)
        return Asked(model, arguments), notes
    assert failure is not None
    raise failure


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:100]}"


def _exact(name: str, known: Mapping[str, Any], arguments: Mapping[str, Any]) -> Asked:
    """Drawn in float64, constants included, with experts one after the other: their grouped products know none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        _, model = _model(name, known, {})
    finally:
        torch.set_default_dtype(before)
    model.set_experts_implementation("eager")
    return Asked(model, arguments)


def _may_encode(config: Any) -> bool:
    return getattr(config, "is_decoder", None) is False


def _alternative(name: str, known: Mapping[str, Any], config: Any) -> tuple[str, Callable[[], nn.Module]] | None:
    """Models of encoders look both ways until told that they decode."""
    more = known.get("alternative", {"is_decoder": True} if _may_encode(config) else None)
    if more is None:
        return None
    words = ", ".join(f"{key}={value}" for key, value in more.items())
    return words, lambda: _as_users_call(_model(name, known, more)[1])[0]


class Asked(nn.Module):
    """A model of transformers as a module from ids (B, T) to logits (B, T, V).

    Args:
        model: of transformers.
        arguments: given at every call.

    Attributes:
        remarks: what was unusual in reading on.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arguments = dict(arguments)
        self.remarks: list[str] = []

    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        """Logits of `ids_BT`, which follow what `memory` has read, if one is given; see `Family.model`."""
        if memory is None:
            return _logits(self.model(ids_BT, **self.arguments))
        arguments = {**self.arguments, "use_cache": True}
        output = self.model(ids_BT, **arguments, **memory)
        memory |= _caches(output)
        if not memory:
            output = self._with_a_cache_of_ours(ids_BT, memory) or output
        return _logits(output)

    def _with_a_cache_of_ours(self, ids_BT: Tensor, memory: dict[str, Any]) -> Any:
        """The output for a cache that is handed in, as `generate` does; None where the model does not fill it."""
        transformers: Any = optional("transformers", "hf")
        try:
            cache = transformers.DynamicCache(config=self.model.config)
            output = self.model(ids_BT, **{**self.arguments, "use_cache": True}, past_key_values=cache)
        except Exception:  # any: a family that knows nothing of such a cache
            return None
        if not cache.is_initialized:
            return None
        memory["past_key_values"] = cache
        self.remarks = ["its output holds no cache: one is handed in, as generate() does"]
        return output

    def generate(self, ids_BT: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
        """The likeliest text ids one by one: all ids (B, T + n), and the logits (B, n, V) they were chosen by."""
        self.model.generation_config.eos_token_id = None
        output = self.model.generate(
            ids_BT,
            max_new_tokens=n_tokens,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
            suppress_tokens=list(range(DRAWN, self(ids_BT).shape[-1])),
            pad_token_id=DRAWN,
        )
        return output.sequences, torch.stack(output.logits, dim=1)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output["logits"] if "logits" in output else output[0]
    return logits


def _caches(output: Any) -> dict[str, Any]:
    return {name: output[name] for name in _CACHES if name in output and output[name] is not None}
