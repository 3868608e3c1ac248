"""The released neuromodulatory control network, against outputs of the original code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import Reference, furthest, read, recorded
from torch import Tensor

from homunculi import certify
from homunculi.core.catalogue import catalogue
from homunculi.core.taps import Recording
from homunculi.interop.published import ncn
from homunculi.models import build

CASES = ("ncn_pub_a_tied", "ncn_pub_b_untied", "ncn_pub_c_two_signals")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, parity_folder: Path) -> Reference:
    return read(parity_folder / "ncn" / f"{request.param}.safetensors")


def tolerance(case: Reference) -> float:
    return max(1e-4, float(case.metadata["jitter_1e-6"]))


def test_logits_and_all_that_leads_to_them_are_the_originals(case: Reference) -> None:
    model = case.build("ncn")
    logits, seen = recorded(model, case["input_ids"])
    n_blocks = model.config.n_blocks
    ours = {
        "logits": logits,
        "controller/pooled": seen["control.pooled"],
        "controller/normed": seen["control.input"],
        "controller/hidden": seen["control.hidden"],
        "controller/raw": seen["control.raw"],
        "state/0": seen["embed"],
    }
    ours |= {f"state/{i + 1}": seen[f"steps.{i}.resid_post"] for i in range(n_blocks)}
    ours |= {f"signals/{name}": seen[f"control.{ncn.SIGNALS[name]}"][..., None] for name in case.under("signals/")}
    stored = {f"{group}{name}" for group in ("controller/", "signals/", "state/") for name in case.under(group)}
    assert ours.keys() == stored | {"logits"}
    assert furthest({name: (ours[name], case[name]) for name in ours}, tolerance(case))[0] < 1e-5


def test_precisions_above_the_limit_are_cut(case: Reference) -> None:
    """Without the cut the logits would be others: the stored precisions exceed it often."""
    assert (case["signals/precision"] > 4).float().mean() > 0.1
    model = case.build("ncn")
    cut = Recording("*", others={"control.precision": lambda tensor, name: tensor.clamp(max=4.0)})
    with torch.no_grad():
        assert torch.equal(model(case["input_ids"], cut).logits, model(case["input_ids"]).logits)


def test_losses_and_gradients_are_the_originals(case: Reference) -> None:
    assert case.metadata["grads_of"].startswith("loss_ce + ")
    model = case.build("ncn")
    output = model(case["input_ids"])
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), case["targets"].flatten())
    penalty = output.loss_terms["homeostasis"]
    assert cross_entropy.item() == pytest.approx(case["loss_ce"].item(), rel=1e-5)
    assert penalty.item() == pytest.approx(case["regulariser"].item(), rel=1e-5)
    (cross_entropy + penalty).backward()
    theirs = case.under("grads/")
    parameters = dict(model.named_parameters())
    named = {own: next(name for name in names if name in theirs) for own, names in ncn.names(model).items()}
    assert named.keys() == parameters.keys() and set(named.values()) == theirs.keys()
    pairs = {name: (gradient(parameters[own]), theirs[name]) for own, name in named.items()}
    assert furthest(pairs, tolerance(case))[0] < 1e-5


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_cached_decoding_is_the_originals_which_is_another_function(case: Reference) -> None:
    model, ids_BT = case.build("ncn"), case["input_ids"]
    n_rows, n_tokens = ids_BT.shape
    prefill = int(case["cached/prefill_len"])
    cache, logits, signals = model.new_cache(n_rows, n_tokens), [], []
    with torch.no_grad():
        for piece_BT in ids_BT.split([prefill] + [1] * (n_tokens - prefill), dim=1):
            seen = Recording("control.*")
            logits.append(model(piece_BT, seen, cache).logits)
            signals.append(seen.seen)
            cache.advance(piece_BT.shape[1])
    pairs = {"cached/logits": (torch.cat(logits, 1), case["cached/logits"])}
    for name, theirs in case.under("cached/signals/").items():
        ours = torch.cat([seen[f"control.{ncn.SIGNALS[name]}"] for seen in signals], 1)
        pairs[name] = (ours[..., None], theirs)
    assert furthest(pairs, tolerance(case))[0] < 1e-5
    assert (case["cached/logits"] - case["logits"]).abs().max() > 0.1


def test_prefixes_give_the_logits_of_the_originals_prefixes(case: Reference) -> None:
    model, ids_BT = case.build("ncn"), case["input_ids"]
    with torch.no_grad():
        last = [model(ids_BT[:, : t + 1]).logits[:, -1] for t in range(ids_BT.shape[1])]
    assert furthest({"prefix": (torch.stack(last, 1), case["prefix/last_logits"])}, tolerance(case))[0] < 1e-5


def test_it_is_certified_to_look_ahead(case: Reference) -> None:
    model = case.build("ncn")
    certificate = certify(model, model.config.vocab_size, model.config.max_seq_len, trial_seconds=0)
    assert not certificate.causal and not certificate.causal_in_training
    assert {"token_edits", "gradients", "prefix_consistency", "cached_decoding"} <= {c.name for c in certificate.failed}
    assert "batch_independence" not in {check.name for check in certificate.failed}


SMALL = {"vocab_size": 512, "d_model": 64, "n_blocks": 3, "max_seq_len": 64, "dropout": 0.0, "attn_dropout": 0.0}
IDS = torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("init", "gain", "precision", "gate", "penalty"),
    [("as_released", 1.0, 0.703, 0.5, 0.00338), ("intended", 1.0, 1.0, 0.953, 0.00002)],
)
def test_a_new_model_starts_where_the_release_does_or_where_the_paper_says(
    init: str, gain: float, precision: float, gate: float, penalty: float
) -> None:
    torch.manual_seed(0)
    output = build("ncn_published", init=init, **SMALL).eval()(IDS)
    found = {name: value.item() for name, value in output.statistics.items()}
    expected = {"gain_mean": gain, "precision_mean": precision, "gate_mean": gate}
    assert found == pytest.approx(expected, abs=0.01)
    assert output.loss_terms["homeostasis"].item() == pytest.approx(penalty, abs=2e-5)


def test_every_tap_fires_once_and_reading_changes_nothing() -> None:
    model = build("ncn_published", **SMALL).eval()
    seen = Recording("*")
    fired: list[str] = []
    with torch.no_grad():
        read_out = model(IDS, Recording("*", others={"*": lambda tensor, name: fired.append(name)})).logits
        assert torch.equal(model(IDS, seen).logits, model(IDS).logits) and torch.equal(read_out, model(IDS).logits)
    assert fired == [entry.name for entry in catalogue(model)] and len(set(fired)) == len(fired)


@pytest.mark.parametrize("name", ["gain", "precision", "gate"])
def test_writing_a_signal_of_one_step_changes_that_step_and_nothing_before(name: str) -> None:
    torch.manual_seed(0)
    model = build("ncn_published", **SMALL).eval()

    def double(tensor: Tensor, _: str) -> Tensor:
        return tensor * torch.tensor([1.0, 2.0, 1.0])

    before, after = Recording("steps.*.resid_post"), Recording("steps.*.resid_post", others={f"control.{name}": double})
    with torch.no_grad():
        model(IDS, before)
        model(IDS, after)
    assert torch.equal(after["steps.0.resid_post"], before["steps.0.resid_post"])
    assert not torch.equal(after["steps.1.resid_post"], before["steps.1.resid_post"])


def test_documents_of_a_row_do_not_see_each_other_even_in_the_pool() -> None:
    torch.manual_seed(0)
    model = build("ncn_published", **SMALL).eval()
    documents_BT = (torch.arange(64) >= 40).long().expand(4, -1)
    with torch.no_grad():
        apart = model(IDS, documents_BT=documents_BT).logits[:, :40]
        assert torch.allclose(apart, model(IDS[:, :40]).logits, atol=1e-5)
        assert not torch.allclose(apart, model(IDS).logits[:, :40], atol=1e-5)
