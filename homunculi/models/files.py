"""A model as files: config.json and model.safetensors. Loading runs no code from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.model import LanguageModel
from ..errors import InputError
from ..settings import from_json, to_json
from .registry import get, name_of

FORMAT = 1


def save_model(model: LanguageModel, folder: Path | str, weights: dict[str, Tensor] | None = None) -> None:
    """Write config.json and model.safetensors into `folder` (of `weights` instead of the model's own if given)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"format": FORMAT, "architecture": name_of(model.config)} | to_json(model.config)
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    tensors = {name: t.detach().contiguous() for name, t in (weights or model.state_dict()).items()}
    # One metadata key only: with two, their order in the file is random and equal weights give different bytes.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        InputError: the file is missing, truncated or of another format.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); use another checkpoint") from error


def load_model(folder: Path | str) -> LanguageModel:
    """The model saved in `folder`, in evaluation mode, on the CPU.

    Raises:
        InputError: a file is missing, damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        written = described.pop("format")
        found = get(described.pop("architecture"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no config.json here; name the folder of a saved model") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'}: not the description of a model ({error})") from error
    if written != FORMAT:
        raise InputError(
            f"{folder / 'config.json'}: format {written}, this version reads {FORMAT}; use the newer program"
        )
    model = found.model_type(from_json(found.config_type, described, "model"))
    load_weights(model, read_weights(folder / "model.safetensors"), str(folder / "model.safetensors"))
    return model.eval()


def load_weights(model: LanguageModel, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into the model, strictly.

    Raises:
        InputError: names or shapes differ; the first difference is named.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise InputError(f"{source}: lacks {name}; it belongs to another configuration")
        if name not in own:
            raise InputError(f"{source}: holds {name}, which this model does not have")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"{source}: {name} is {tuple(weights[name].shape)}, this model's is {tuple(own[name].shape)}"
            )
    with torch.no_grad():
        model.load_state_dict(weights, strict=True)
