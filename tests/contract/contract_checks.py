"""What every architecture has to pass, one function a check. They know architectures only through the registry.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homunculi import models
from homunculi.core.budget import count_parameters
from homunculi.core.catalogue import catalogue
from homunculi.core.held import holding
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording, TapInfo, require_names
from homunculi.errors import InputError
from homunculi.experiments.certify import Certificate, certify
from homunculi.experiments.subject import add_noise
from homunculi.models.files import load_model, load_weights, read_weights, save_model
from homunculi.settings import from_json, to_json
from homunculi.train.checkpoint import Progress, restore, save_checkpoint
from homunculi.train.config import RunConfig, TrainConfig
from homunculi.train.distributed import World
from homunculi.train.loss import TrainingLoss
from homunculi.train.optim import optimizer_tensors
from homunculi.train.step import Updater

# Sizes set in every configuration that has such a field. No two are equal, so that a mistaken axis shows.
SIZES = {"vocab_size": 61, "d_model": 32, "max_seq_len": 20}
CPU = torch.device("cpu")
# How far budget() may be from the counted FLOPs: what multiplies no matrices is not counted there.
FLOPS_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Case:
    """One small configuration of one architecture."""

    id: str
    model_type: type[LanguageModel]
    config: Any

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def model(self, seed: int = 0) -> LanguageModel:
        torch.manual_seed(seed)
        return self.model_type(self.config)

    def perturbed(self) -> LanguageModel:
        """In float64 and evaluation mode, every parameter perturbed, so that nothing hides behind a zero."""
        model = self.model().double().eval()
        add_noise(model, seed=1)
        return model

    def ids(self, n_rows: int = 2, n_tokens: int = SIZES["max_seq_len"], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.vocab_size, (n_rows, n_tokens), generator=generator)


def cases(name: str) -> list[Case]:
    """The variants of an architecture; it declares which fields they set beside `SIZES`."""
    found = models.get(name)
    known = {field.name for field in fields(found.config_type)}
    sizes = {field: size for field, size in SIZES.items() if field in known}
    return [
        Case(f"{name}-{i}", found.model_type, found.config_type(**(sizes | dict(variant))))
        for i, variant in enumerate(found.variants)
    ]


_CERTIFICATES: dict[str, Certificate] = {}


def certificate_of(case: Case) -> Certificate:
    if case.id not in _CERTIFICATES:
        _CERTIFICATES[case.id] = certify(case.model(), case.vocab_size, SIZES["max_seq_len"], trial_seconds=0)
    return _CERTIFICATES[case.id]


def assert_certified(case: Case, *names: str) -> None:
    found = {check.name: check for check in certificate_of(case).checks}
    assert not set(names) - found.keys(), certificate_of(case).notes
    assert all(found[name].passed for name in names), [found[name] for name in names]


def logits_have_the_shape_and_type_of_the_contract(case: Case, folder: Path) -> None:
    model = case.model().eval()
    for shape in ((1, 1), (2, 7), (3, SIZES["max_seq_len"])):
        output = model(case.ids(*shape))
        assert output.logits.shape == (*shape, case.vocab_size)
        assert output.logits.dtype == torch.float32
        assert output.logits.isfinite().all()
        assert all(term.dim() == 0 for term in output.loss_terms.values())
    model.compute_dtype = torch.bfloat16
    narrow = model(case.ids()).logits
    assert narrow.dtype in (torch.bfloat16, torch.float32) and narrow.isfinite().all()


def initial_loss_is_near_that_of_guessing(case: Case, folder: Path) -> None:
    ids = case.ids(8, SIZES["max_seq_len"] + 1)
    loss = TrainingLoss(case.model().eval())(ids).cross_entropy
    assert loss.item() == pytest.approx(math.log(case.vocab_size), rel=0.1)


def no_logit_sees_a_later_token(case: Case, folder: Path) -> None:
    certificate = certificate_of(case)
    assert_certified(case, "token_edits", "gradients", "prefix_consistency", "determinism")
    assert certificate.causal
    assert certificate.causal_in_training, certificate.failed


def rows_of_a_batch_are_independent(case: Case, folder: Path) -> None:
    assert_certified(case, "batch_independence", "call_independence", "state_unchanged")


def cached_decoding_equals_the_full_forward(case: Case, folder: Path) -> None:
    assert_certified(case, "cached_decoding", "ragged_decoding")
    model = case.model()
    with pytest.raises(InputError):
        model.new_cache(1, 4).positions(5)


def one_batch_can_be_learned_by_heart(case: Case, folder: Path) -> None:
    loss_of, ids = TrainingLoss(case.model()), case.ids(2, SIZES["max_seq_len"] + 1)
    optimizer = torch.optim.AdamW(loss_of.parameters(), lr=5e-3, weight_decay=0.0)
    wanted = 0.2 * math.log(case.vocab_size)
    for _ in range(10):
        loss_of.train()
        for _ in range(10):
            loss, terms, _ = loss_of(ids)
            optimizer.zero_grad()
            torch.stack([loss, *terms.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(loss_of.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            reached = loss_of.eval()(ids)[0].item()
        if reached < wanted:
            return
    assert reached < wanted


def configuration_survives_json(case: Case, folder: Path) -> None:
    described = to_json(case.config)
    assert from_json(type(case.config), described, "model") == case.config
    with pytest.raises(InputError, match="model"):
        from_json(type(case.config), described | {"no_such_field": 1}, "model")


def weights_survive_safetensors(case: Case, folder: Path) -> None:
    model = case.model().eval()
    state = model.state_dict()
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    assert max(storages.values()) == 1, "two names share a tensor"
    save_model(model, folder)
    loaded = load_model(folder)
    assert_equal_tensors(loaded.state_dict(), state)
    assert torch.equal(loaded(case.ids()).logits, model(case.ids()).logits)
    first = next(iter(state))
    save_file({n: t for n, t in read_weights(folder / "model.safetensors").items() if n != first}, folder / "less")
    with pytest.raises(InputError, match=first):
        load_weights(model, read_weights(folder / "less"), "less")


def taps_fire_once_and_change_only_what_follows(case: Case, folder: Path) -> None:
    model, ids_BT = case.perturbed(), case.ids()
    entries = catalogue(model)
    fired: Counter[str] = Counter()
    with torch.no_grad():
        plain = model(ids_BT).logits
        seen = Recording("*", others={"*": lambda tensor, name: fired.update([name])})
        assert torch.equal(model(ids_BT, seen).logits, plain), "reading changes the output"
        assert fired == Counter([entry.name for entry in entries])
        letters = {"B": ids_BT.shape[0], "T": ids_BT.shape[1]}
        for entry in entries:
            assert tuple(letters.get(n, n) for n in entry.shape) == seen[entry.name].shape, entry
            _assert_writing_changes_what_follows(model, ids_BT, entry, seen, plain)
    with pytest.raises(InputError, match=entries[-1].name):
        require_names([entries[-1].name + "x"], [entry.name for entry in entries])


def _assert_writing_changes_what_follows(
    model: LanguageModel, ids_BT: Tensor, entry: TapInfo, before: Recording, plain: Tensor
) -> None:
    """Write at later positions only (the first axis T): what came before, in depth or in time, stays."""
    p = ids_BT.shape[1] // 2
    axis = entry.shape.index("T") if "T" in entry.shape else None

    def write(tensor: Tensor, name: str) -> Tensor:
        changed = tensor.clone()
        part = changed if axis is None else changed.narrow(axis, p, tensor.shape[axis] - p)
        noise = torch.rand(part.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        part.copy_(~part if part.dtype == torch.bool else part + (1 + noise).to(part.dtype))
        return changed

    after = Recording("*", others={entry.name: write})
    logits = model(ids_BT, after).logits
    for name in before:
        if name == entry.name:
            break
        assert torch.equal(after[name], before[name]), f"writing {entry.name} changes {name}, which comes before"
    if axis is not None:
        assert torch.allclose(logits[:, :p], plain[:, :p], rtol=1e-9, atol=1e-9), f"{entry.name} reaches back in time"
    assert not torch.allclose(logits[:, p:], plain[:, p:], rtol=1e-6, atol=1e-6), f"writing {entry.name} has no effect"


def neutral_modulation_gives_the_bits_of_none(case: Case, folder: Path) -> None:
    model: Any = case.model().eval()
    twin = model.neutral_twin().eval()
    assert torch.equal(model(case.ids()).logits, twin(case.ids()).logits)


def budget_agrees_with_what_is_counted(case: Case, folder: Path) -> None:
    model, ids_BT = case.model().eval(), case.ids()
    budget = model.budget(ids_BT.shape[1])
    assert (
        budget.parameters == count_parameters(model) == sum(t.numel() for t in dict(model.named_parameters()).values())
    )
    assert 0 <= budget.embedding_parameters <= budget.parameters
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), holding(model):
        model(ids_BT)  # what is made of weights alone is no cost of a token
        with FlopCounterMode(display=False) as counter:
            model(ids_BT)
    assert budget.flops_per_token * ids_BT.numel() == pytest.approx(counter.get_total_flops(), rel=FLOPS_TOLERANCE)
    model.compute_dtype = torch.bfloat16
    grown = model.new_cache(3, 19).n_bytes - model.new_cache(3, 9).n_bytes
    assert budget.cache_bytes_per_token * 3 * 10 == grown


def one_seed_gives_the_same_bits_twice(case: Case, folder: Path) -> None:
    ids = case.ids(2, SIZES["max_seq_len"] + 1)
    results = []
    for _ in range(2):
        model = case.model(seed=5)
        loss, terms, _ = TrainingLoss(model.train())(ids)
        torch.stack([loss, *terms.values()]).sum().backward()
        results.append([loss, *terms.values(), *model.parameters(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True) if a is not None)
    other = [*case.model(seed=6).parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(other, case.model(seed=5).parameters(), strict=True))


def resuming_gives_the_bits_of_going_on(case: Case, folder: Path) -> None:
    batches = [[case.ids(2, SIZES["max_seq_len"] + 1, seed=i)] for i in range(5)]
    config = RunConfig(model=case.config, steps=5, lr=3e-3, compile="off", train=TrainConfig(ema=0.9))

    def updater(seed: int) -> Updater:
        return Updater(case.model(seed), config, None, World(), CPU, pytest.fail)

    whole = updater(seed=0)
    for step in (1, 2):
        whole.update(step, batches[step - 1], stop=False)
    checkpoint = save_checkpoint(folder, whole, Progress(step=2))
    resumed = updater(seed=1)
    restore(checkpoint, resumed)
    for step in (3, 4, 5):
        for side in (whole, resumed):
            side.update(step, batches[step - 1], stop=False)
    assert whole.average is not None and resumed.average is not None
    assert_equal_tensors(whole.model.state_dict(), resumed.model.state_dict())
    assert_equal_tensors(whole.average, resumed.average)
    assert_equal_tensors(*(optimizer_tensors(side.model, side.optimizers) for side in (whole, resumed)))


def assert_equal_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def compiled_equals_eager(case: Case, folder: Path) -> None:
    torch._dynamo.reset()
    model, ids = case.model().double(), case.ids(2, SIZES["max_seq_len"] + 1)
    loss_of = TrainingLoss(model.train())
    results = []
    for call in (loss_of, torch.compile(loss_of, backend="aot_eager", dynamic=False)):
        torch.manual_seed(0)
        loss, terms, _ = call(ids)
        total = torch.stack([loss, *terms.values()]).sum()
        results.append([total.detach(), *torch.autograd.grad(total, list(model.parameters()), allow_unused=True)])
    for eager, compiled in zip(*results, strict=True):
        assert (eager is None) == (compiled is None)
        if eager is not None:
            torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-8)


def gradients_reach_every_parameter(case: Case, folder: Path) -> None:
    model = case.perturbed().train()
    loss, terms, _ = TrainingLoss(model)(case.ids(8, SIZES["max_seq_len"] + 1))
    torch.stack([loss, *terms.values()]).sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


# Names of checks as exemptions give them.
CHECKS: dict[str, Callable[[Case, Path], None]] = {
    "shape": logits_have_the_shape_and_type_of_the_contract,
    "initial_loss": initial_loss_is_near_that_of_guessing,
    "causality": no_logit_sees_a_later_token,
    "batch_independence": rows_of_a_batch_are_independent,
    "cached_decoding": cached_decoding_equals_the_full_forward,
    "overfitting": one_batch_can_be_learned_by_heart,
    "config_json": configuration_survives_json,
    "state_dict": weights_survive_safetensors,
    "taps": taps_fire_once_and_change_only_what_follows,
    "neutral_modulation": neutral_modulation_gives_the_bits_of_none,
    "budget": budget_agrees_with_what_is_counted,
    "same_seed": one_seed_gives_the_same_bits_twice,
    "exact_resume": resuming_gives_the_bits_of_going_on,
    "compilation": compiled_equals_eager,
    "gradients": gradients_reach_every_parameter,
}


def applies(check: str, case: Case) -> bool:
    """Whether a check has anything to ask: only modulation that declares a neutral start is asked about it."""
    return check != "neutral_modulation" or hasattr(case.model_type, "neutral_twin")


def stale(check: str, variants: list[Case], folder: Path) -> bool:
    """Whether all variants pass a check: an exemption from it is no longer needed."""
    for case in variants:
        try:
            CHECKS[check](case, Path(tempfile.mkdtemp(dir=folder)))
        except Exception:  # of any kind: the check does not pass
            return False
    return True
