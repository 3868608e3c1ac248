"""A trained model as a folder that transformers loads with ``trust_remote_code=True``, without this package.

The folder holds weights, tokenizer and all code of the architecture, found by following its imports.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import nn

from homunculi import __version__
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.errors import HomunculiError, InputError
from homunculi.files import sync_folder, write_atomic
from homunculi.interop.flattening import HOME, flatten
from homunculi.models import Architecture, get, name_of
from homunculi.settings import to_json

PREFIX = "model."
TEMPLATES = ("configuration_homunculi", "decoding_homunculi", "modeling_homunculi")
STEP = re.compile(r"^steps\.\d+\.")
# Name of a width in transformers: the site of its taps, the axis, how many axes there are.
WIDTHS = {
    "hidden_size": ("embed", -1, 3),
    "num_attention_heads": ("attn.q", -2, 4),
    "num_key_value_heads": ("attn.k", -2, 4),
    "intermediate_size": ("mlp.post", -1, 3),
}
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Codec(Protocol):
    """What is needed of a tokenizer."""

    eot_id: int

    def to_json(self) -> str: ...


def export(model: LanguageModel, folder: Path | str, tokenizer: Codec | None = None) -> list[str]:
    """Write `model` to a new or empty folder; the names of the files.

    Tensors keep their bits; their names get the prefix ``model.``. The folder appears whole or not at all.

    Args:
        model: of a registered architecture.
        folder: made if absent.
        tokenizer: with its end of text; without one, no tokenizer is written.

    Raises:
        InputError: the folder is not empty or cannot be written, or the architecture's source cannot be copied.
    """
    place = Path(folder).resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        _refuse_taken(place, str(folder))
        content = _content(model, tokenizer)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in content.items():
            write_atomic(temporary / name, data)
        os.replace(temporary, place)  # an empty folder gives way
        sync_folder(place.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in DISK_IS_FULL:
            raise
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(content)


def _refuse_taken(place: Path, name: str) -> None:
    if place.is_dir():
        if any(place.iterdir()):
            raise InputError(f"{name}: is not empty; choose a new folder, or empty it first")
    elif place.exists():
        raise InputError(f"{name}: is no folder; choose another name")


def _content(model: LanguageModel, tokenizer: Codec | None) -> dict[str, str | bytes]:
    """All files by name."""
    found = get(name_of(model.config))
    config, generation = describe(model), _generation(model, found)
    if tokenizer is not None:
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_id)
        config, generation = config | ends, generation | ends
    tensors = {PREFIX + name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    content: dict[str, str | bytes] = {f"{name}.py": text for name, text in _code(found).items()}
    content |= {
        "README.md": _template("README.md").replace("ARCHITECTURE", found.name),
        "config.json": _text_of(config),
        "generation_config.json": _text_of(generation),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
    if tokenizer is not None:
        content |= _tokenizer_files(tokenizer, model.config.max_seq_len)
    return content


def describe(model: LanguageModel) -> dict[str, Any]:
    """The content of config.json: sizes under the names of transformers, as the model's taps show them, and our own.

    A size that the architecture does not have is left out.
    """
    name = name_of(model.config)
    was_training = model.training
    model.eval()
    try:
        found = _widths(model) | {"tie_word_embeddings": _reads_out_with_its_table(model)}
    finally:
        model.train(was_training)
    return {
        "architectures": ["HomunculiForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_homunculi.HomunculiConfig",
            "AutoModelForCausalLM": "modeling_homunculi.HomunculiForCausalLM",
        },
        "model_type": _model_type(name),
        "dtype": next(str(p.dtype) for p in model.parameters() if p.is_floating_point()).removeprefix("torch."),
        "vocab_size": model.config.vocab_size,
        "num_hidden_layers": len(model.schedule),
        "num_blocks": len({step.block for step in model.schedule}),
        "max_position_embeddings": model.config.max_seq_len,
        **found,
        HOME: {"architecture": name, "version": __version__, "config": to_json(model.config)},
    }


def _model_type(name: str) -> str:
    return f"{HOME}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"


def _widths(model: LanguageModel) -> dict[str, int]:
    """Sizes of what passes the first tap of each kind, in a forward of one token."""
    seen = Recording(*(site if site == "embed" else f"steps.*.{site}" for site, _, _ in WIDTHS.values()))
    with torch.no_grad():
        model(_one_token(model), seen)
    first: dict[str, torch.Size] = {}
    for name in seen:
        first.setdefault(STEP.sub("", name), seen[name].shape)
    return {
        key: first[site][axis] for key, (site, axis, n_axes) in WIDTHS.items() if len(first.get(site, ())) == n_axes
    }


def _reads_out_with_its_table(model: LanguageModel) -> bool:
    """Whether the logits of a given state depend on the table that looks up tokens."""
    n_words = model.config.vocab_size
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == n_words]
    tables = [table for table in tables if table.requires_grad]
    with torch.enable_grad():
        logits = model.readout(model.trunk(_one_token(model)).x_BTD.detach())
    if not (tables and logits.requires_grad):
        return False
    return any(found is not None for found in torch.autograd.grad(logits.sum(), tables, allow_unused=True))


def _one_token(model: LanguageModel) -> torch.Tensor:
    return torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)


def _generation(model: LanguageModel, found: Architecture) -> dict[str, Any]:
    """The content of generation_config.json: a cache where that gives the same."""
    return {"use_cache": _can_cache(model, found)}


def _can_cache(model: LanguageModel, found: Architecture) -> bool:
    if "cached_decoding" in found.exemptions:
        return False
    try:
        model.new_cache(1, 1)
    except (NotImplementedError, HomunculiError):
        return False
    return True


def _code(found: Architecture) -> dict[str, str]:
    """Sources by module name."""
    kinds = {"Config": found.config_type, "Model": found.model_type}
    for kind in kinds.values():
        if "." in kind.__qualname__:
            raise InputError(f"{found.name}: {kind.__qualname__} is defined inside something; put it into a file's top")
    imports = [f"from {kind.__module__} import {kind.__name__} as {name}" for name, kind in kinds.items()]
    texts = {name: _template(f"{name}.py") for name in TEMPLATES}
    texts["configuration_homunculi"] = texts["configuration_homunculi"].replace("MODEL_TYPE", _model_type(found.name))
    texts["architecture"] = "\n".join(['"""Which architecture this folder holds."""', "", *imports, ""])
    return flatten(texts, {HOME, *(kind.__module__.partition(".")[0] for kind in kinds.values())})


def _template(name: str) -> str:
    return (files(__package__) / "hf_templates" / f"{name}.txt").read_text(encoding="utf-8")


def _tokenizer_files(tokenizer: Codec, longest: int) -> dict[str, str]:
    plan = tokenizer.to_json()
    added = {token["id"]: token["content"] for token in json.loads(plan)["added_tokens"]}
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), added[tokenizer.eot_id])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that spells the end of text is text
    }
    return {
        "tokenizer.json": plan,
        "tokenizer_config.json": _text_of(settings | ends),
        "special_tokens_map.json": _text_of(ends),
    }


def _text_of(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
