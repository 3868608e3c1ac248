"""Exported models in transformers: every architecture in every variant, in a process where this package is absent.

Legend: B batch, T positions.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from homunculi import models
from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.subject import add_noise
from homunculi.interop import hf
from homunculi.models import Architecture
from homunculi.text.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from tests.conftest import SKIPS
from tests.contract.contract_checks import cases
from tests.interop.outside import NAME, outside  # noqa: F401

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason=SKIPS["transformers"])
READER = Path(__file__).with_name("hf_reader.py")
GREEDY = Sampling(temperature=0)
N_NEW = 6
PAD = 0
IDS = [case.id for name in models.names() for case in cases(name)]


def exempt(name_of_check: str) -> set[str]:
    """Cases of architectures that do not pass a check of the contract."""
    return {case.id for name in models.names() for case in cases(name) if name_of_check in models.get(name).exemptions}


CACHED = [i for i in IDS if i not in exempt("cached_decoding")]
PADDED = [i for i in CACHED if i not in exempt("causality") | exempt("batch_independence")]


@dataclass(frozen=True)
class Exchange:
    """A model, what was asked of its export, and what that answered, or how it failed."""

    model: LanguageModel
    asked: dict[str, Tensor]
    answers: dict[str, Tensor]
    failure: str

    def __getitem__(self, name: str) -> Tensor:
        assert not self.failure, self.failure
        return self.answers[name]


def noisy(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        add_noise(model, seed=1)
    return model.eval()


def questions(model: LanguageModel) -> dict[str, Tensor]:
    """Ids (B, T), and prompts of different lengths with padding on the left."""
    draw = torch.Generator().manual_seed(0)
    n_words, longest = model.config.vocab_size, model.config.max_seq_len
    prompts = torch.randint(n_words, (3, 9), generator=draw)
    mask = torch.ones_like(prompts)
    for row, n_padding in enumerate((0, 6, 3)):
        prompts[row, :n_padding], mask[row, :n_padding] = PAD, 0
    names = {tap.name for tap in catalogue(model)}
    has_hidden = all(f"steps.{i}.resid_post" in names for i in range(len(model.schedule))) and "embed" in names
    return {
        "ids": torch.randint(n_words, (2, longest), generator=draw),
        "prompts": prompts,
        "mask": mask,
        "n_new": torch.tensor(N_NEW),
        "has_hidden": torch.tensor(int(has_hidden)),
    }


def ask(subjects: dict[str, LanguageModel], folder: Path) -> dict[str, Exchange]:
    """Export all models and let one process, which has transformers and not this package, load and use them."""
    asked = {}
    for name, model in subjects.items():
        hf.export(model, folder / name / "exported.model-1")
        asked[name] = questions(model)
        save_file(asked[name], folder / name / "asked.safetensors")
    paths = [str(folder / name / "exported.model-1") for name in subjects]
    private = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | private
    done = subprocess.run(
        [sys.executable, str(READER), *paths], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr and "not used when" not in done.stderr, done.stderr
    exchanges = {}
    for name, model in subjects.items():
        failed = folder / name / "failed.txt"
        failure = failed.read_text() if failed.exists() else ""
        answers = {} if failure else load_file(folder / name / "answers.safetensors")
        exchanges[name] = Exchange(model, asked[name], answers, failure)
    return exchanges


@pytest.fixture(scope="session")
def exchanges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exchange]:
    found = {case.id: noisy(case.model()) for name in models.names() for case in cases(name)}
    return ask(found, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def exchange(request: pytest.FixtureRequest, exchanges: dict[str, Exchange]) -> Exchange:
    return exchanges[request.param]


@torch.no_grad()
def continued(model: LanguageModel, ids_BT: Tensor) -> Tensor:
    """Greedy tokens by full forwards."""
    for _ in range(N_NEW):
        ids_BT = torch.cat([ids_BT, model(ids_BT).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids_BT


def rows_of(asked: dict[str, Tensor]) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(asked["prompts"], asked["mask"], strict=True)]


@pytest.mark.parametrize("exchange", IDS, indirect=True)
def test_logits_are_the_same_bit_for_bit(exchange: Exchange) -> None:
    logits = exchange.model(exchange.asked["ids"]).logits
    assert torch.equal(exchange["logits"], logits)
    assert torch.equal(exchange["again"], logits), "after save_pretrained"
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), exchange.asked["ids"][:, 1:].flatten())
    torch.testing.assert_close(exchange["loss"], expected)


@pytest.mark.parametrize("exchange", IDS, indirect=True)
def test_greedy_text_without_a_cache_is_the_same(exchange: Exchange) -> None:
    assert torch.equal(exchange["uncached"], continued(exchange.model, exchange.asked["ids"][:, :7]))


@pytest.mark.parametrize("exchange", CACHED, indirect=True)
def test_greedy_text_with_a_cache_is_the_same(exchange: Exchange) -> None:
    prompts = exchange.asked["ids"][:, :7]
    ours = torch.stack(list(generate(exchange.model, prompts.tolist(), N_NEW, GREEDY)), 1)
    assert torch.equal(exchange["cached"], torch.cat([prompts, ours], 1))


@pytest.mark.parametrize("exchange", PADDED, indirect=True)
def test_rows_padded_on_the_left_give_what_they_give_alone(exchange: Exchange) -> None:
    rows = rows_of(exchange.asked)
    for i, row in enumerate(rows):
        alone = exchange.model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(exchange["padded"][i, -len(row) :], alone, rtol=1e-4, atol=1e-5)
    ours = torch.stack(list(generate(exchange.model, rows, N_NEW, GREEDY)), 1)
    assert torch.equal(exchange["ragged"][:, -N_NEW:], ours)
    assert torch.equal(exchange["ragged_uncached"][:, -N_NEW:], ours)


@pytest.mark.parametrize("exchange", IDS, indirect=True)
def test_hidden_states_are_the_embedding_and_each_step(exchange: Exchange) -> None:
    seen = Recording("embed", "steps.*.resid_post")
    exchange.model(exchange.asked["ids"], seen)
    names = ["embed", *(f"steps.{i}.resid_post" for i in range(len(exchange.model.schedule)))]
    if not exchange.asked["has_hidden"]:
        assert set(names) - set(seen) and "hidden_0" not in exchange.answers
        return
    assert sum(name.startswith("hidden_") for name in exchange.answers) == len(names)
    for i, name in enumerate(names):
        assert torch.equal(exchange[f"hidden_{i}"], seen[name])


def test_an_architecture_of_another_package_is_the_same(outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
    model = twice()
    with torch.no_grad():
        model.scale.stored.mul_(1.25)
    exchange = ask({"outside": model}, tmp_path)["outside"]
    assert torch.equal(exchange["logits"], model(exchange.asked["ids"]).logits)
    assert torch.equal(exchange["again"], exchange["logits"])
    ours = torch.stack(list(generate(model, rows_of(exchange.asked), N_NEW, GREEDY)), 1)
    assert torch.equal(exchange["ragged"][:, -N_NEW:], ours)
    assert "hidden_4" in exchange.answers and "hidden_5" not in exchange.answers


# What follows loads the folder here, because it asks about single calls.


@pytest.fixture
def code_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the folder's code go to a folder of the tests."""
    import transformers.dynamic_module_utils as remote

    folder = tmp_path_factory.getbasetemp() / "remote_code"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(remote, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])


def plain(**fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    return noisy(models.build("gpt", **{"vocab_size": 61, "d_model": 32, "n_blocks": 2, "max_seq_len": 24} | fields))


def twice() -> LanguageModel:
    torch.manual_seed(0)
    return noisy(models.build(NAME, vocab_size=61, d_model=32, n_blocks=2, max_seq_len=20))


def loaded(model: LanguageModel, folder: Path, tokenizer: Tokenizer | None = None, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    hf.export(model, folder, tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.mark.usefixtures("code_cache")
class TestLoaded:
    def test_padding_and_ignored_labels_do_not_count(self, tmp_path: Path) -> None:
        model = loaded(plain(), tmp_path / "m")
        ids = torch.randint(61, (1, 9))
        alone = model(ids, labels=ids).loss
        padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
        mask = (torch.arange(13) >= 4).long()[None]
        labels = padded.masked_fill(mask == 0, -100)
        torch.testing.assert_close(model(padded, attention_mask=mask, labels=labels).loss, alone)
        right = model(padded.flip(1), attention_mask=mask.flip(1), labels=labels.flip(1)).loss
        torch.testing.assert_close(right, model(ids.flip(1), labels=ids.flip(1)).loss)
        some = labels.clone()
        some[:, 8:] = -100
        expected = F.cross_entropy(model(ids).logits[0, :3], ids[0, 1:4])
        torch.testing.assert_close(model(padded, attention_mask=mask, labels=some).loss, expected)

    def test_batches_of_one_update_add_up_to_its_loss(self, outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
        model = loaded(twice(), tmp_path / "m").train()
        ids = torch.randint(61, (4, 9))
        whole = model(ids, labels=ids).loss
        parts = [model(part, labels=part, num_items_in_batch=torch.tensor(32)).loss for part in ids.split(2)]
        torch.testing.assert_close(sum(parts), whole)

    def test_loss_terms_are_added_in_training_alone(self, outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
        model = loaded(twice(), tmp_path / "m")
        ids = torch.randint(61, (2, 9))
        term = model.model(ids).loss_terms["size"]
        assert term > 0.01
        evaluated = model(ids, labels=ids).loss
        torch.testing.assert_close(model.train()(ids, labels=ids).loss, evaluated + term)

    def test_what_does_not_learn_stays_so(self, outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
        model = loaded(twice(), tmp_path / "m")
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.scale.fixed"]
        ids = torch.randint(61, (2, 9))
        model(ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_beams_with_a_cache_are_those_without(self, tmp_path: Path) -> None:
        model = loaded(plain(n_kv_heads=2), tmp_path / "m")
        asked = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
        prompts, mask = torch.randint(61, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
        found = [model.generate(prompts, attention_mask=mask, use_cache=cached, **asked) for cached in (True, False)]
        assert torch.equal(*found) and found[0].shape == (4, 14)

    def test_a_prompt_may_be_read_in_pieces_and_a_text_gone_on_with(self, tmp_path: Path) -> None:
        model = loaded(plain(), tmp_path / "m")
        ids = torch.randint(61, (1, 11))
        whole = model.generate(ids, max_new_tokens=8)
        assert torch.equal(model.generate(ids, max_new_tokens=8, prefill_chunk_size=4), whole)
        first = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True)
        assert first.past_key_values.get_seq_length() == 13
        later = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=5)
        assert torch.equal(later, whole)

    def test_text_ends_at_the_end_of_text(self, tmp_path: Path) -> None:
        own = plain(vocab_size=257)
        model = loaded(own, tmp_path / "m", ByteTokenizer())
        ids = torch.randint(256, (2, 4))
        drawn = continued(own, ids)[:, 4:].tolist()
        assert model.generation_config.eos_token_id == 256 and drawn[0][0] not in drawn[1]
        model.generation_config.eos_token_id = drawn[0][0]
        found = model.generate(ids, max_new_tokens=N_NEW)[:, 4:].tolist()
        assert found == [[drawn[0][0], *[256] * (N_NEW - 1)], drawn[1]]

    def test_half_precision_keeps_computed_numbers_whole(self, outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
        own = twice()
        model = loaded(own, tmp_path / "m", dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        for name, buffer in own.named_buffers():
            assert torch.equal(model.model.get_buffer(name), buffer), name
        ids = torch.randint(61, (2, 9))
        torch.testing.assert_close(model(ids).logits.float(), own(ids).logits.float(), rtol=0.1, atol=0.05)

    def test_rows_of_a_cache_are_selected_in_all_of_its_tensors(self, tmp_path: Path) -> None:
        model = loaded(plain(), tmp_path / "m")
        held = model(torch.randint(61, (2, 5)), use_cache=True).past_key_values
        first, second = held.tokens.slots
        second.k_BHLK = first.k_BHLK
        before = first.k_BHLK.clone(), second.v_BHLK.clone()
        held.batch_repeat_interleave(2)
        held.batch_select_indices(torch.tensor([False, True, True, False]))
        held.reorder_cache(torch.tensor([1, 0]))
        assert first.k_BHLK is second.k_BHLK
        assert torch.equal(first.k_BHLK, before[0].flip(0)) and torch.equal(second.v_BHLK, before[1].flip(0))
        assert held.tokens.lengths_B.tolist() == [5, 5] and held.get_seq_length() == 5
        first.k_BHLK = torch.zeros(7)
        with pytest.raises(NotImplementedError, match="no axis of rows"):
            held.reorder_cache(torch.tensor([1, 0]))

    def test_a_configuration_alone_gives_a_model_with_random_weights(self, tmp_path: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        hf.export(plain(), tmp_path / "m")
        config = AutoConfig.from_pretrained(tmp_path / "m", trust_remote_code=True)
        torch.manual_seed(7)
        fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        torch.manual_seed(7)
        ours = models.build("gpt", vocab_size=61, d_model=32, n_blocks=2, max_seq_len=24).state_dict()
        found = fresh.model.state_dict()
        assert not [name for name in ours if not torch.equal(ours[name], found[name])]

    def test_loading_draws_no_random_numbers(self, tmp_path: Path) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        model = plain()
        torch.manual_seed(3)
        loaded(model, tmp_path / "m")
        assert torch.equal(torch.rand(4), expected)

    def test_weights_that_lack_something_are_refused(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        hf.export(plain(), tmp_path / "m")
        path = tmp_path / "m" / "model.safetensors"
        weights = load_file(path)
        del weights["model.blocks.1.attn.q.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"the weights lack weight \(32, 32\) of a Linear"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1]])}, "between its tokens"),
            ({"attention_mask": torch.ones(1, 1, 5, 5)}, "one number a token"),
            ({"attention_mask": torch.ones(1, 4)}, "one number a token"),
            ({"position_ids": torch.arange(5)[None]}, "positions follow from attention_mask"),
            ({"output_attentions": True}, "attn.pattern"),
            ({"inputs_embeds": torch.zeros(1, 5, 32)}, "reads token ids"),
        ],
    )
    def test_what_cannot_be_obeyed_is_refused(self, arguments: dict[str, Any], reason: str, tmp_path: Path) -> None:
        model = loaded(plain(), tmp_path / "m")
        with pytest.raises(ValueError, match=reason):
            model(torch.arange(5)[None], **arguments)

    def test_a_text_longer_than_the_model_reads_is_refused(self, tmp_path: Path) -> None:
        model = loaded(plain(max_seq_len=8), tmp_path / "m")
        with pytest.raises(Exception, match="do not fit its capacity of 8"):
            model.generate(torch.arange(5)[None], max_new_tokens=9)

    def test_the_tokenizer_gives_the_same_tokens(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        letters = "ab é\n\t 中🙂'0.,<|endoftext|>"
        draw = random.Random(0)
        texts = ["", "<|endoftext|>", "  two  spaces ", "don't . stop !", "\r\n\x00\x7f"]
        texts += ["".join(draw.choices(letters, k=30)) for _ in range(40)]
        trained = train_bpe(iter(["one two three don't stop, one two."] * 40), 300)
        for name, own in (("bytes", ByteTokenizer()), ("bpe", trained)):
            hf.export(plain(vocab_size=own.vocab_size), tmp_path / name, own)
            theirs = AutoTokenizer.from_pretrained(tmp_path / name, trust_remote_code=True)
            assert [theirs(text)["input_ids"] for text in texts] == own.encode_batch(texts)
            assert [theirs.decode(own.encode(text)) for text in texts] == texts
            assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == own.eot_id
            assert len(theirs) == own.vocab_size and theirs.model_max_length == 24
            batch = theirs(["a", "longer"], padding=True)
            assert batch["attention_mask"][0][0] == 0 and batch["input_ids"][0][0] == own.eot_id
            assert theirs.decode([own.eot_id, *own.encode("a b")], skip_special_tokens=True) == "a b"
