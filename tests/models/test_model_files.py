"""A model as files: what was saved comes back, and what is damaged or foreign is refused in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.models import build
from homunculi.models.files import load_model, load_weights, read_weights, save_model


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return build("gpt", vocab_size=11, d_model=16, n_blocks=1, n_heads=2, max_seq_len=8, dropout=0.1)


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_comes_back_in_evaluation_mode(model: LanguageModel, folder: Path) -> None:
    loaded = load_model(folder)
    assert not loaded.training and loaded.config == model.config
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_equal_weights_give_equal_files(model: LanguageModel, folder: Path, tmp_path: Path) -> None:
    save_model(model, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_other_weights_can_be_saved_for_a_model(model: LanguageModel, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, zeros)
    assert not load_model(tmp_path)(torch.arange(8)[None]).logits.any()
    assert model.embed.weight.any()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_one(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def add_one(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors") | {"extra": torch.ones(1)}, folder / "model.safetensors")


def reshape_one(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"norm.weight": torch.ones(17)}
    save_file(tensors, folder / "model.safetensors")


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        described = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(described))

    return edit


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architecture": "gpt", ')


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors: not a whole safetensors file"),
        (replace_by_pickle, "model.safetensors: not a whole safetensors file"),
        (empty, "model.safetensors: not a whole safetensors file"),
        (drop_weights, "model.safetensors: no such file"),
        (drop_one, "lacks norm.weight"),
        (add_one, "holds extra"),
        (reshape_one, r"norm.weight is \(17,\), this model's is \(16,\)"),
        (edit_config(d_model=32), "this model's is"),
        (edit_config(d_model="wide"), "model.d_model"),
        (edit_config(n_wings=2), "n_wings"),
        (edit_config(architecture="gtp"), "no such architecture; did you mean gpt"),
        (edit_config(format=99), "format 99"),
        (break_config, "config.json: not the description of a model"),
        (drop_config, "no config.json here"),
    ],
)
def test_damage_is_told_in_one_line(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_failed_load_changes_no_weight(model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = {name: torch.zeros_like(tensor) for name, tensor in before.items()} | {"norm.weight": torch.ones(17)}
    with pytest.raises(InputError, match=r"norm\.weight"):
        load_weights(model, wrong, "weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_loading_runs_no_code_from_a_file(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        read_weights(folder / "model.safetensors")
    assert not (tmp_path / "exploded").exists()
