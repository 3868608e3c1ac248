"""Small configurations of other people's model families: widths, depths and windows from a table, by attribute name.

`families.json` holds one size for every attribute name that families share, and one entry for a family that needs
more. Everything else keeps the default of the family's own configuration. Windows, chunks and budgets of sparse
attention come out smaller than the context, so that what happens at their borders is asked.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

DRAWN = 64  # ids below it stand for text; ids that a family treats in a special way lie above

_HEADS = "num_attention_heads"
_KEY_HEADS = {"num_key_value_heads", "num_kv_heads"}
_KINDS = ("layer_types", "mlp_layer_types")  # the first decides how many layers there are
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")


@cache
def table() -> dict[str, Any]:
    """The table: `sizes` by attribute, `families` by name, `shared` entries that several families name."""
    return dict(json.loads(files(__package__).joinpath("families.json").read_text(encoding="utf-8")))


def entry(family: str) -> dict[str, Any]:
    """What the table says about one family; empty for most.

    `config` holds attributes, `part` the attribute whose configuration is the language model's, `refused` why the
    family cannot be asked, `alternative` other attributes that users may want, `causes` why a column says no.
    """
    return dict(table()["families"].get(family, {}))


def small_config(config_type: type, wanted: Mapping[str, Any]) -> Any:
    """A small configuration of that type.

    Args:
        config_type: its class; called without arguments it gives the family's default.
        wanted: attributes that go before the table's sizes, nested for parts of a model.
    """
    return _small(config_type, wanted, count(DRAWN))


def _small(config_type: type, wanted: Mapping[str, Any], free_ids: Iterator[int]) -> Any:
    default = _defaults(config_type)
    parameters = _parameters(config_type)
    values: dict[str, Any] = {}
    for name in parameters:
        value = default.get(name)
        if hasattr(value, "to_dict"):  # a part of the model, with a configuration of its own
            values[name] = _small(type(value), wanted.get(name, {}), free_ids)
        elif name not in wanted:
            values |= _resized(name, value, default, free_ids)
    values = {**wanted, **values}
    listed = {name: default[name] for name in _KINDS if name in default and name in parameters and name not in wanted}
    return config_type(**(values | _one_of_each(listed, values, wanted)))


def _defaults(config_type: type) -> dict[str, Any]:
    """The family's own values, an attribute under each of the names it goes by."""
    values = dict(vars(config_type()))
    also: Mapping[str, str] = getattr(config_type, "attribute_map", {})
    return {name: values[stored] for name, stored in also.items() if stored in values} | values


def _parameters(config_type: type) -> list[str]:
    """Names that the configuration's constructor takes."""
    if dataclasses.is_dataclass(config_type):
        return [field.name for field in dataclasses.fields(config_type)]
    return [name for name in inspect.signature(config_type).parameters if name != "kwargs"]


def _resized(name: str, value: Any, default: Mapping[str, Any], free_ids: Iterator[int]) -> dict[str, Any]:
    """The attribute at its small size; empty where the default is small already, or is no size."""
    if isinstance(value, bool) or value is None:
        return {}
    if name.endswith(("_token_id", "_token_index")):
        return _renumbered(name, value, free_ids)
    sizes = table()["sizes"]
    if name in _KEY_HEADS and value == default.get(_HEADS):
        return {name: sizes[_HEADS]}
    if name in sizes and isinstance(value, (int, float)) and value > sizes[name]:
        return {name: sizes[name]}
    return {}


def _renumbered(name: str, value: Any, free_ids: Iterator[int]) -> dict[str, Any]:
    """Special ids move out of the way of text; a padding id always does, others where they are beyond it."""
    if isinstance(value, list):
        return {name: [next(free_ids) for _ in value]}
    if isinstance(value, int) and (value >= DRAWN or name.startswith("pad")):
        return {name: next(free_ids)}
    return {}


def _one_of_each(listed: Mapping[str, Any], values: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Lists that name a kind for each layer, with every kind of the default once, and as many layers as that takes."""
    depths = [name for name in _DEPTHS if name in values]
    n_layers = next((values[name] for name in depths), 2)
    found: dict[str, Any] = {}
    for name in _KINDS:
        kinds = list(dict.fromkeys(listed.get(name) or []))
        if not kinds:
            continue
        if name == _KINDS[0] and not wanted.keys() & set(depths):
            n_layers = max(2, len(kinds))
            found |= dict.fromkeys(depths, n_layers)
        found[name] = [kinds[i % len(kinds)] for i in range(n_layers)]
    return found
