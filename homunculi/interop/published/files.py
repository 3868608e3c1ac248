"""Published weights out of files, and into a model folder. Nothing in a file is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.files import sync_folder
from homunculi.interop.published import build
from homunculi.models.files import save_model

PREFIX = "weights/"  # of weights in a file that holds other tensors as well
WRAPPERS = ("module.", "_orig_mod.")  # what parallel and compiled training put before every name
# Where a checkpoint keeps its tensors, and its configuration.
NESTS = ("model_state_dict", "state_dict", "model", "module", "weights", "params")
CONFIGS = ("config", "model_config")


@dataclass(frozen=True, slots=True)
class Published:
    """What a file of weights holds.

    Attributes:
        weights: tensors by their authors' names.
        config: the configuration that lies beside them, if one does.
    """

    weights: dict[str, Tensor]
    config: Any = None


def read(path: Path | str) -> Published:
    """Weights of a .safetensors file, or of a .pt, .pth or .bin file that holds tensors and plain values only.

    Raises:
        InputError: the file is missing, damaged or of another kind, or only running code could read it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        found = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        found = _read_pickled(path)
    else:
        raise InputError(f"{path}: expected a file of weights, .safetensors, .pt or .pth")
    return Published(_unwrapped(found.weights), found.config)


def _read_safetensors(path: Path) -> Published:
    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            wanted = [name for name in names if name.startswith(PREFIX)] or names
            weights = {name.removeprefix(PREFIX): file.get_tensor(name) for name in wanted}
        return Published(weights, json.loads(metadata["config"]) if "config" in metadata else None)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _read_pickled(path: Path) -> Published:
    try:
        with warnings.catch_warnings(action="ignore"):  # about what it will refuse
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, it holds more than tensors and plain values, and reading that would run code from the "
            "file; save its state dict as .safetensors where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a whole file of weights ({type(error).__name__}); fetch it again") from error
    config = None
    while isinstance(held, Mapping):
        config = next((held[name] for name in CONFIGS if isinstance(held.get(name), Mapping)), config)
        nested = next((held[name] for name in NESTS if isinstance(held.get(name), Mapping)), None)
        if nested is None:
            break
        held = nested
    if not (isinstance(held, Mapping) and held and all(isinstance(tensor, Tensor) for tensor in held.values())):
        raise InputError(f"{path}: no state dict in it, at the top or under {', '.join(NESTS)}")
    return Published({str(name): tensor for name, tensor in held.items()}, config)


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    return weights


def read_config(path: Path | str) -> Any:
    """A configuration out of a JSON file.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def import_model(
    system: str, weights: Path | str, folder: Path | str, config: Path | str | None = None
) -> LanguageModel:
    """Write published weights as a model folder (config.json and model.safetensors); the model itself.

    Args:
        system: as `homunculi.interop.published.build` takes it.
        weights: a file that `read` takes.
        folder: new or empty; it appears whole or not at all.
        config: a JSON file; None: what lies beside the weights in their file.

    Raises:
        InputError: as `read` and `build`; no configuration; the folder is taken or cannot be written.
    """
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{folder}: is taken; choose a new folder, or empty it first")
    found = read(weights)
    given = found.config if config is None else read_config(config)
    if given is None:
        raise InputError(f"{weights}: holds no configuration; give it with --config FILE.json")
    model = build(system, given, found.weights)
    _write(model, place)
    return model


def _write(model: LanguageModel, place: Path) -> None:
    place = place.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        save_model(model, temporary)
        temporary.chmod(0o755)
        os.replace(temporary, place)  # an empty folder gives way
        sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
