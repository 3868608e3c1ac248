"""Families of the installed transformers: small, random, offline, asked as users call them.

Legend: B batch, T positions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.errors import InputError
from homunculi.experiments.audit_family import examine
from homunculi.interop import families
from homunculi.interop.family_configs import DRAWN, entry, small_config, table
from tests.conftest import SKIPS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason=SKIPS["transformers"])
ROOT = Path(__file__).resolve().parents[2]
# Attention, recurrence, experts, windows, an encoder's decoder, positions without a table.
BUILT = [
    "gpt2",
    "llama",
    "mamba",
    "rwkv",
    "bloom",
    "mixtral",
    "gemma2",
    "bart",
    "opt",
    "gpt_neo",
    "mistral",
    "qwen3_next",
]


def test_the_installed_families_are_known() -> None:
    known = families.names()
    assert len(known) >= 150
    assert known == sorted(known)
    assert set(BUILT) < set(known)
    assert families.versions()["transformers"] == __import__("transformers").__version__


def test_entries_of_the_table_are_well_formed() -> None:
    kinds = {"config", "part", "refused", "alternative", "causes"}
    assert all(entry(name).keys() <= kinds for name in table()["families"])
    columns = {"causal", "cached_equals_full", "batch_independent", "prefix_consistent"}
    assert all(entry(name).get("causes", {}).keys() <= columns for name in table()["families"])


@pytest.mark.parametrize("name", BUILT)
def test_a_family_is_small_and_called_with_ids_alone(name: str) -> None:
    family = families.build(name)
    assert sum(p.numel() for p in family.model.parameters()) < 500_000
    ids_BT = torch.randint(family.vocab_size, (2, 9))
    inner: Any = family.model.model
    with torch.no_grad():
        assert torch.equal(family.model(ids_BT), inner(ids_BT).logits)
    again = families.build(name).model
    assert all(torch.equal(a, b) for a, b in zip(family.model.parameters(), again.parameters(), strict=True))


def test_windows_and_kinds_of_layers_matter_at_the_context() -> None:
    from transformers import CONFIG_MAPPING

    config = small_config(CONFIG_MAPPING["gemma3_text"], {})
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.num_hidden_layers == len(config.layer_types)
    assert config.sliding_window < families.CONTEXT // 4
    assert config.vocab_size > config.pad_token_id >= DRAWN
    config = small_config(CONFIG_MAPPING["mixtral"], {"num_local_experts": 3})
    assert config.num_local_experts == 3
    assert config.num_key_value_heads < config.num_attention_heads, "heads share keys as they do by default"
    config = small_config(CONFIG_MAPPING["opt"], {})
    assert config.num_attention_heads == 4


def test_a_decoder_is_certified_whole() -> None:
    found = examine(families.build("llama"))
    assert [found[column] for column in ("causal", "causal_in_training", "cached_equals_full")] == [True] * 3
    assert (found["batch_independent"], found["prefix_consistent"]) == (True, True)
    assert found["made"] == "LlamaForCausalLM"


def test_an_encoder_is_reported_as_users_get_it() -> None:
    found = examine(families.build("bert"))
    assert (found["causal"], found["prefix_consistent"]) == (False, False)
    assert found["note"].startswith(
        "reads both ways: is_decoder is False by default; with is_decoder=True: causal, cached equals full"
    )


def test_experts_are_asked_in_float64_too() -> None:
    found = examine(families.build("mixtral"))
    assert found["causal"] is True
    assert "experts one by one" in found["note"]


class Forgetful(families.Asked):
    """Reads every piece as if nothing came before."""

    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        if memory is not None:
            memory["something"] = 1
        return super().forward(ids_BT, None if memory is None else {})


class Peeking(families.Asked):
    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        logits_BTV = super().forward(ids_BT, memory)
        return logits_BTV + 1e-6 * torch.roll(logits_BTV, -1, dims=1)


@pytest.mark.parametrize(("fault", "column"), [(Forgetful, "cached_equals_full"), (Peeking, "causal")])
def test_a_fault_in_a_real_model_is_found(fault: type[families.Asked], column: str) -> None:
    family = families.build("gpt2")
    inner: Any = family.model.model
    assert examine(replace(family, model=fault(inner, {})))[column] is False


def test_what_cannot_be_asked_says_why() -> None:
    with pytest.raises(InputError, match="no such family"):
        families.build("gpt5")
    refused = [name for name in families.names() if "refused" in entry(name)]
    for name in refused:
        with pytest.raises(InputError, match="another model"):
            families.build(name)


def test_the_verb_writes_rows_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "homunculi", "audit", "gpt2", "bert", "--out", str(tmp_path), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    found = json.loads(first.stdout)
    assert [(row["family"], row["causal"]) for row in found["families"]] == [("gpt2", True), ("bert", False)]
    assert found["transformers"] == families.versions()["transformers"]
    assert "2/2" in first.stderr
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    assert json.loads(second.stdout) == found
    assert "2/2" not in second.stderr, "nothing was asked again"
