"""A certificate finds every fault that was built in, under its name, and raises no alarm for honest models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
import toys_language
from torch import Tensor, nn
from toys import CONTEXT, VOCAB

import homunculi
from homunculi.errors import InputError
from homunculi.experiments import certify as certify_module
from homunculi.experiments.certificate import Certificate, Check
from homunculi.experiments.certify import certify, certify_architecture
from homunculi.experiments.subject import Subject
from homunculi.models import build

TRIAL = {"random_tokens", "random_tokens_training"}
CUTS = {"every_cut", "every_cut_training"}
EVERYWHERE = {"token_edits", "gradients", "token_edits_training", "gradients_training", "prefix_consistency"} | CUTS
IN_TRAINING = {"token_edits_training", "gradients_training", "every_cut_training"}
CACHED = {"cached_decoding", "ragged_decoding", "token_by_token"}
SMALL = toys_language.config(vocab_size=toys.VOCAB, n_blocks=1)
# Model, the checks that must fail (and no other; what the random-token trial finds is in test_trial.py), causal, causal
# in training.
FAULTS = [
    (toys.MeanPooling, EVERYWHERE, False, False),
    (toys.ReversedMask, EVERYWHERE, False, False),
    (toys.TopKAlongSequence, EVERYWHERE - {"gradients", "gradients_training"}, False, False),
    (toys.OneAhead, EVERYWHERE, False, False),
    (toys.InsideChunks, EVERYWHERE, False, False),
    (toys.BehindZero, EVERYWHERE, False, False),
    (toys.BelowFloat32, EVERYWHERE, False, False),
    (toys.BesideHugeLogits, EVERYWHERE, False, False),
    (toys.LeaksInTraining, IN_TRAINING, True, False),
    (toys.BatchNormalised, IN_TRAINING, True, False),
    (toys.LengthNormaliser, {"prefix_consistency"}, False, True),
    (toys.BatchCoupled, {"batch_independence"}, True, True),
    (toys.RowsInLine, {"batch_independence"}, True, True),
    (toys.Noisy, {"determinism"}, True, True),
    (toys.Counting, {"state_unchanged"}, True, True),
    (toys.OnAKnifeEdge, {"hard_choices"}, True, True),
    (partial(toys_language.Forgetful, SMALL), CACHED, True, True),
    (partial(toys_language.ControlledByAll, SMALL), EVERYWHERE | CACHED, False, False),
    (partial(toys_language.CountsPadding, SMALL), {"ragged_decoding", "token_by_token"}, True, True),
]
HONEST = [
    toys.Toy,
    toys.Recurrent,
    toys.RecurrentSum,
    toys.Dropped,
    toys.Admitting,
    toys.FrozenMask,
    toys.OnlyFloat32,
    toys.FloatInside,
    partial(toys_language.RunningMean, SMALL),
]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def failures(certificate: Certificate) -> set[str]:
    return {check.name for check in certificate.failed}


@pytest.mark.parametrize(("make", "expected", "causal", "in_training"), FAULTS)
def test_fault_is_found_under_its_name(
    make: Callable[[], nn.Module], expected: set[str], causal: bool, in_training: bool
) -> None:
    certificate = certify(seeded(make), VOCAB, CONTEXT, trial_seconds=0)
    assert failures(certificate) == expected
    assert (certificate.causal, certificate.causal_in_training) == (causal, in_training)
    assert all(check.note for check in certificate.failed)
    assert [found.mode for found in certificate.leaks] == [
        mode for name, mode in (("every_cut", "evaluation"), ("every_cut_training", "training")) if name in expected
    ]


def test_a_trial_that_fails_is_left_out_and_accuses_nobody() -> None:
    certificate = certify(seeded(toys.WithoutGradient), VOCAB, CONTEXT)
    assert certificate.causal and not TRIAL & {check.name for check in certificate.checks}
    assert "trial left out: RuntimeError" in certificate.notes[-1]


def test_a_long_certificate_gives_the_trial_less_time() -> None:
    assert certify_module._left(45.0, time.perf_counter()) == 45.0
    assert certify_module._left(45.0, time.perf_counter() - 1e6) == certify_module.LEAST_TRIAL_SECONDS
    assert certify_module._left(3.0, time.perf_counter() - 1e6) == 3.0


def test_a_leak_that_opens_in_training_is_found_by_the_trial_alone() -> None:
    certificate = certify(seeded(toys.OpensByTraining), VOCAB, CONTEXT)
    assert failures(certificate) == TRIAL
    assert not certificate.causal and not certificate.causal_in_training


def test_a_model_that_remembers_earlier_calls_is_found() -> None:
    assert "call_independence" in failures(certify(seeded(toys.Remembering), VOCAB, CONTEXT, trial_seconds=0))


def test_chance_in_evaluation_is_no_leak_but_a_failed_check() -> None:
    certificate = certify(seeded(toys.Noisy), VOCAB, CONTEXT, trial_seconds=0)
    assert certificate.causal and failures(certificate) == {"determinism"}
    assert "draws at random" in certificate.notes[0]


def test_a_model_that_refuses_some_lengths_is_compared_at_the_others() -> None:
    certificate = certify(seeded(toys.EvenLengthsOnly), VOCAB, CONTEXT, trial_seconds=0)
    prefix = next(check for check in certificate.checks if check.name == "prefix_consistency")
    assert prefix.passed and "does not take 1" in prefix.note


@pytest.mark.parametrize("make", HONEST)
def test_honest_module_raises_no_alarm(make: Callable[[], nn.Module]) -> None:
    certificate = certify(seeded(make), VOCAB, CONTEXT)
    assert certificate.causal and certificate.causal_in_training and not certificate.failed
    assert {check.name for check in certificate.checks} > EVERYWHERE | TRIAL
    assert not [note for note in certificate.notes if "trial" in note]


def test_a_model_that_cannot_be_copied_is_certified_without_a_trial() -> None:
    certificate = certify(seeded(toys.Uncopyable), VOCAB, CONTEXT)
    assert certificate.causal and certificate.causal_in_training and not certificate.failed
    assert {check.name for check in certificate.checks} > EVERYWHERE
    assert "trial left out" in certificate.notes[-1]


def test_hard_choices_are_counted_where_there_are_any() -> None:
    found = {check.name: check for check in certify(seeded(toys.Admitting), VOCAB, CONTEXT, trial_seconds=0).checks}
    assert found["hard_choices"].value == 0 and f"of {2 * CONTEXT} choices" in found["hard_choices"].note
    plain = certify(seeded(toys.Toy), VOCAB, CONTEXT, trial_seconds=0)
    assert "hard_choices" not in {check.name for check in plain.checks}


def test_gpt_with_dropout_raises_no_alarm_and_tells_its_budget() -> None:
    certificate = certify_architecture("gpt", d_model=32, n_blocks=2, n_kv_heads=2, max_seq_len=CONTEXT, dropout=0.2)
    assert certificate.causal and certificate.causal_in_training and not certificate.failed
    assert {check.name for check in certificate.checks} > CACHED | TRIAL
    model = build("gpt", vocab_size=64, d_model=32, n_blocks=2, n_kv_heads=2, max_seq_len=CONTEXT)
    assert certificate.budget == model.budget(CONTEXT)


def test_plain_function_has_only_the_checks_that_apply() -> None:
    certificate = certify(toys.bigram, VOCAB, CONTEXT)
    assert certificate.causal and certificate.causal_in_training and not certificate.failed
    applicable = {"token_edits", "gradients", "every_cut", "prefix_consistency", "batch_independence", "determinism"}
    assert {check.name for check in certificate.checks} == applicable | {"call_independence"}
    assert certificate.budget is None
    assert "cannot be trained" in certificate.notes[0]


def test_leaky_function_is_found_without_an_embedding() -> None:
    certificate = certify(toys.bag_of_words, VOCAB, CONTEXT)
    assert not certificate.causal and not certificate.causal_in_training
    assert "gradients" not in {check.name for check in certificate.checks}


def test_a_function_that_ignores_its_input_is_causal_and_told_so() -> None:
    certificate = certify(toys.constant, VOCAB, CONTEXT)
    assert certificate.causal
    assert "ignores its input" in certificate.checks[0].note


def test_leak_is_found_in_a_compiled_module() -> None:
    leaky = torch.compile(seeded(toys.MeanPooling), backend="eager")
    assert failures(certify(leaky, VOCAB, CONTEXT)) == EVERYWHERE | TRIAL


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x), lambda x: (x, None)])
def test_logits_may_come_inside_an_object(wrap: Callable[[Tensor], Any]) -> None:
    assert certify(lambda ids: wrap(toys.bigram(ids)), VOCAB, CONTEXT).causal
    assert not certify(lambda ids: wrap(toys.bag_of_words(ids)), VOCAB, CONTEXT).causal


def test_shortest_context_is_certified() -> None:
    assert certify(seeded(toys.Toy), 2, 2).causal
    assert not certify(seeded(toys.MeanPooling), 2, 2).causal
    assert not certify_architecture("gpt", d_model=16, n_blocks=1, n_heads=2, max_seq_len=2, trial_seconds=1).failed


@pytest.mark.parametrize("make", [toys.Recurrent, toys.Uncopyable, toys.LeakyUncopyable, toys.BatchNormalised])
def test_model_mode_and_random_state_are_left_alone(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    model.get_submodule("out").eval()
    next(model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    certify(model, VOCAB, CONTEXT)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_what_could_not_be_done_as_usual_is_noted() -> None:
    in_place = certify(seeded(toys.LeakyUncopyable), VOCAB, CONTEXT)
    assert "cannot be copied" in in_place.notes[0] and failures(in_place) == EVERYWHERE
    narrow = certify(seeded(toys.OnlyFloat32), VOCAB, CONTEXT, trial_seconds=0)
    assert "float32 only" in narrow.notes[0]
    assert narrow.checks[0].limit == 1e-4
    assert certify(seeded(toys.FloatInside), VOCAB, CONTEXT, trial_seconds=0).checks[0].limit == 1e-9


def test_a_slow_model_is_asked_less_but_at_the_full_context(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(Subject, "seconds", lambda self, ids: 5.0)
    watched = seeded(toys.Recurrent)
    watched.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    certificate = certify(watched, VOCAB, 160, trial_seconds=0)
    assert certificate.causal and "slow" in certificate.notes[0]
    assert lengths.count(160) < 30
    assert max(lengths) == 160 and 128 in lengths


def test_a_busy_machine_is_asked_with_one_thread_and_threads_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(Subject, "seconds", lambda self, ids: float(torch.get_num_threads()))
    watched = seeded(toys.Toy)
    watched.register_forward_pre_hook(lambda module, args: used.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        assert certify(watched, VOCAB, CONTEXT, trial_seconds=0).causal
        assert torch.get_num_threads() == 2 and used[-1] == 1
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("call", "vocab_size", "context", "message"),
    [
        (toys.bigram, 1, 8, "vocab_size=1"),
        (toys.bigram, VOCAB, 1, "context=1"),
        (toys.bigram, 50, 40, "fails on ids"),
        (lambda ids: toys.bigram(ids)[:, -1], VOCAB, 8, "expected logits"),
        (lambda ids: "text", VOCAB, 8, "expected logits"),
        (lambda ids: toys.bigram(ids)[:, -1:], VOCAB, 8, "expected logits"),
    ],
)
def test_what_is_no_language_model_is_refused_in_one_line(
    call: Callable[[Tensor], Any], vocab_size: int, context: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        certify(call, vocab_size, context)
    assert "\n" not in str(error.value)


def test_context_beyond_the_model_is_refused_in_one_line() -> None:
    model = build("gpt", vocab_size=VOCAB, d_model=16, n_blocks=1, n_heads=2, max_seq_len=8)
    with pytest.raises(InputError, match=r"max_seq_len=8$"):
        certify(model, VOCAB, 9)


def test_architecture_errors_name_the_field() -> None:
    with pytest.raises(InputError, match="gtp"):
        certify_architecture("gtp")
    with pytest.raises(InputError, match="n_layers"):
        certify_architecture("gpt", n_layers=2)


def test_json_holds_verdicts_and_checks() -> None:
    certificate = certify_architecture("gpt", d_model=16, n_blocks=1, n_heads=2, max_seq_len=8, trial_seconds=0)
    shown = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    assert shown["causal"] is True and shown["causal_in_training"] is True
    assert all({"name", "passed", "value", "limit"} <= check.keys() for check in shown["checks"])
    assert shown["budget"]["parameters"] == certificate.budget.parameters
    broken = Certificate(False, False, (Check.of("token_edits", float("nan"), 1e-9),))
    shown = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert shown["checks"][0]["passed"] is False and shown["checks"][0]["value"] > 1e300
    assert "budget" not in shown


def test_one_seed_gives_one_certificate() -> None:
    model = seeded(toys.MeanPooling)
    assert certify(model, VOCAB, CONTEXT, seed=3) == certify(model, VOCAB, CONTEXT, seed=3)


def test_certify_is_public() -> None:
    assert homunculi.certify is certify
