"""The plain transformer: what its configuration refuses, what it counts, how documents, caches and read-outs behave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.models import build, get, name_of, names
from homunculi.models.gpt import CONTRACT_CONFIGS, Config

TINY: dict[str, Any] = {"vocab_size": 23, "d_model": 16, "n_blocks": 2, "n_heads": 4, "max_seq_len": 16}


def tiny(**config: Any) -> LanguageModel:
    torch.manual_seed(0)
    return build("gpt", **(TINY | config)).double().eval()


def ids(n_rows: int = 2, n_tokens: int = 16) -> torch.Tensor:
    return torch.randint(23, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"d_model": 0}, "model.d_model"),
        ({"n_blocks": -1}, "model.n_blocks"),
        ({"n_heads": 0}, "model.n_heads"),
        ({"max_seq_len": 0}, "model.max_seq_len"),
        ({"vocab_size": -3}, "model.vocab_size"),
        ({"d_mlp": -8}, "model.d_mlp"),
        ({"n_heads": 3}, "model.n_heads"),
        ({"n_heads": 16}, "model.d_head"),
        ({"d_head": 5}, "model.d_head"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"dropout": -0.1}, "model.dropout"),
        ({"rope_base": 1.0}, "model.rope_base"),
        ({"vocab_size": 0}, "model.vocab_size"),
        ({"n_layers": 2}, "n_layers"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        build("gpt", **(TINY | config))
    assert field in str(error.value) and "\n" not in str(error.value)


def test_unknown_architecture_is_refused_with_a_near_name() -> None:
    with pytest.raises(InputError, match="did you mean gpt"):
        build("gpt2")
    with pytest.raises(InputError, match="not the configuration"):
        name_of("gpt")


def test_the_registry_knows_the_architecture_and_its_variants() -> None:
    assert "gpt" in names()
    assert get("gpt").variants == CONTRACT_CONFIGS
    assert name_of(Config()) == "gpt"


def test_sizes_that_are_zero_are_derived() -> None:
    shapes = {name: tuple(p.shape) for name, p in tiny(n_kv_heads=2).named_parameters()}
    assert shapes["blocks.0.attn.q.weight"] == (16, 16)
    assert shapes["blocks.0.attn.k.weight"] == (8, 16)
    assert shapes["blocks.0.mlp.in.weight"] == (48, 16)
    shapes = {name: tuple(p.shape) for name, p in tiny(activation="relu2", d_head=6).named_parameters()}
    assert shapes["blocks.0.attn.o.weight"] == (16, 24)
    assert shapes["blocks.0.mlp.in.weight"] == (64, 16)


def test_residual_stream_keeps_its_size_with_depth() -> None:
    shallow, deep = (tiny(n_blocks=n).trunk(ids(8)).x_BTD.std().item() for n in (2, 32))
    assert 0.5 < deep / shallow < 2


@pytest.mark.parametrize("config", CONTRACT_CONFIGS)
def test_flops_are_counted_exactly(config: dict[str, Any]) -> None:
    model = build("gpt", **(TINY | {"d_model": 32} | config)).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(3, 16, dtype=torch.long, device="meta"))
    assert model.budget(16).flops_per_token * 3 * 16 == counter.get_total_flops()


def test_budget_tells_stored_from_executed_parameters() -> None:
    tied, untied = tiny().budget(), tiny(tied=False).budget()
    table = 23 * 16
    assert untied.parameters - tied.parameters == table
    assert (tied.embedding_parameters, untied.embedding_parameters) == (table, 2 * table)
    assert tied.non_embedding_parameters == untied.non_embedding_parameters
    assert tied.executed_parameters == untied.executed_parameters
    assert tied.flops_per_token > tiny().budget(context=4).flops_per_token
    assert tiny(n_kv_heads=1).budget().cache_bytes_per_token * 4 == tied.cache_bytes_per_token


def test_documents_packed_in_a_row_give_what_they_give_apart() -> None:
    model, row = tiny(), ids(1)
    documents_BT = torch.tensor([[0] * 5 + [1] * 1 + [2] * 10])
    packed = model(row, documents_BT=documents_BT).logits
    apart = [model(part).logits for part in row.split([5, 1, 10], dim=1)]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), rtol=1e-5, atol=1e-7)  # rotary tables are float32
    assert not torch.allclose(packed, model(row).logits)


def test_one_document_is_the_whole_row() -> None:
    model = tiny()
    whole = model(ids()).logits
    torch.testing.assert_close(model(ids(), documents_BT=torch.ones(2, 16)).logits, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [[16], [1] * 16, [5, 1, 10], [15, 1]])
def test_any_pieces_through_a_cache_give_the_full_forward(sizes: list[int]) -> None:
    model, rows = tiny(n_kv_heads=2, qk_norm=True), ids()
    cache, logits = model.new_cache(2, 16), []
    for piece in rows.split(sizes, dim=1):
        logits.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(logits, 1), model(rows).logits, rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny()
    with pytest.raises(InputError, match="max_seq_len=16"):
        model(ids(1, 17))
    with pytest.raises(InputError, match="max_seq_len=16"):
        model.new_cache(1, 17)
    cache = model.new_cache(1, 8)
    with pytest.raises(InputError, match="capacity of 8"):
        model(ids(1, 9), cache=cache)


def test_forward_is_the_read_out_of_the_trunk() -> None:
    model = tiny(tied=False)
    assert torch.equal(model(ids()).logits, model.readout(model.trunk(ids()).x_BTD))


def test_tied_read_out_is_the_token_table() -> None:
    model = tiny()
    assert "untied.weight" not in model.state_dict()
    x_BTD = model.trunk(ids()).x_BTD
    expected = model.norm(x_BTD) @ model.embed.weight.T
    torch.testing.assert_close(model.readout(x_BTD), expected)


def test_compute_dtype_narrows_activations_and_cache_but_no_weight() -> None:
    model = build("gpt", **TINY).eval()
    model.compute_dtype = torch.bfloat16
    seen = Recording("*")
    narrow = model(ids(), seen).logits.float()
    assert {tensor.dtype for tensor in seen.seen.values()} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.new_cache(1, 4).at(0).k_BHLK.dtype == torch.bfloat16
    model.compute_dtype = None
    torch.testing.assert_close(narrow, model(ids()).logits, rtol=0.1, atol=0.02)


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    assert torch.equal(model(ids()).logits, model(ids()).logits)
    model.train()
    assert not torch.allclose(model(ids()).logits, model(ids()).logits)
