"""The benchmark's cases are well-formed and its numbers agree with each other; the plain loop is what it says."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from benchmarks.compare_cpu import compare
from benchmarks.plain_loop import PlainLoop, Shape
from homunculi.errors import InputError
from homunculi.experiments import bench
from homunculi.experiments.bench import CASES, Case, prepare_training, run, run_case, table
from homunculi.models import get

CPU = torch.device("cpu")
TINY = {"d_model": 16, "n_blocks": 2, "n_heads": 2, "max_seq_len": 32, "vocab_size": 50, "activation": "gelu"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases of their own, small enough to run in milliseconds."""
    monkeypatch.setitem(CASES, "train-tiny", Case(model=TINY, batch=4, precision="float32", on_gpu=False))
    decoding = Case(model=TINY, batch=3, precision="float32", on_gpu=False, prompt=4, new_tokens=8)
    monkeypatch.setitem(CASES, "decode-tiny", decoding)


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_describes_a_model_that_exists_and_fits_its_context(name: str) -> None:
    case = CASES[name]
    config = get(case.architecture).config_type(**case.model)
    assert case.batch >= 1 and case.decodes == name.startswith("decode")
    assert case.prompt + case.new_tokens <= config.max_seq_len
    assert case.precision == ("bf16" if case.on_gpu else "float32")


def test_the_cases_have_the_sizes_that_their_names_say() -> None:
    assert CASES["train-18m"].tokens_per_step == 64 * 512
    assert CASES["train-124m"].tokens_per_step == 32 * 1024
    assert CASES["train-cpu"].tokens_per_step == 16 * 256
    assert (CASES["decode-18m-b1"].tokens_per_step, CASES["decode-18m-b64"].tokens_per_step) == (1, 64)
    for name, millions in (("train-18m", 17.6), ("train-124m", 123.6)):
        with torch.device("meta"):
            found = get("gpt")
            model = found.model_type(found.config_type(**CASES[name].model))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", ["train-tiny", "decode-tiny"])
def test_a_case_runs_on_the_cpu_and_its_numbers_agree(tiny: None, name: str) -> None:
    result = run_case(name, CPU, n=5, warmup=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    case = CASES[name]
    assert result["n"] == 5 and result["device"] == "cpu" and result["dtype"] == "float32"
    assert 0 < result["ms_low"] <= result["ms_per_step"] <= result["ms_high"]
    assert result["tokens_per_s"] == pytest.approx(1e3 * case.tokens_per_step / result["ms_per_step"])
    passes = 1 if case.decodes else 3
    context = case.prompt + case.new_tokens // 2 if case.decodes else TINY["max_seq_len"]
    found = get("gpt")
    budget = found.model_type(found.config_type(**TINY)).budget(context)
    assert result["parameters"] == budget.parameters
    assert result["flops_per_s"] == pytest.approx(passes * budget.flops_per_token * result["tokens_per_s"])
    assert result["share_of_peak"] == pytest.approx(result["flops_per_s"] / result["measured_peak_tflops"] / 1e12)
    assert result["peak_memory_gib"] is None and result["compile"] is False
    assert result["shape"]["batch"] == case.batch and result["shape"]["d_model"] == TINY["d_model"]


def test_a_training_case_takes_the_training_loops_own_update(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = bench.Updater.update

    def counted(self: bench.Updater, *args: object, **kwargs: object) -> object:
        taken.append(args[0])
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.Updater, "update", counted)
    run_case("train-tiny", CPU, n=3, warmup=2, peak=False)
    assert taken == [1, 2, 3, 4, 5]


def test_batches_differ_and_lie_inside_the_vocabulary(tiny: None) -> None:
    updater, batches, _ = prepare_training(CASES["train-tiny"], CPU, 10)
    assert len({tuple(ids.flatten().tolist()) for ids in batches}) == len(batches) > 1
    assert all(ids.shape == (4, 33) and ids.min() >= 0 and ids.max() < 50 for ids in batches)
    assert {group["lr"] for optimizer in updater.optimizers for group in optimizer.param_groups} == {1e-3}


def test_a_case_for_a_gpu_is_skipped_with_its_reason_on_a_cpu(tiny: None) -> None:
    heard: list[dict[str, object]] = []
    results = run(["train-18m", "train-tiny"], CPU, heard.append, n=1, warmup=0)
    assert results == heard and [r["case"] for r in results] == ["train-18m", "train-tiny"]
    assert "GPU" in str(results[0]["skipped"]) and "tokens_per_s" not in results[0]
    assert "skipped" not in results[1]
    shown = table(results)
    assert shown.row_count == 1 and "train-18m skipped: needs a GPU" in str(shown.caption)


def test_a_smaller_scale_runs_a_gpu_case_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "gpu-tiny", Case(model=TINY, batch=8, precision="bf16", on_gpu=True))
    result = run_case("gpu-tiny", CPU, n=1, warmup=0, scale=0.25, peak=False)
    assert result["shape"]["batch"] == 2 and result["tokens_per_step"] == 2 * 32 and result["dtype"] == "bf16"
    assert "share_of_peak" not in result


def test_measuring_restores_the_precision_of_products(tiny: None) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        run_case("train-tiny", CPU, n=1, warmup=0, peak=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_unknown_case_is_refused_before_anything_is_measured(tiny: None) -> None:
    heard: list[dict[str, object]] = []
    with pytest.raises(InputError, match="train-18n: no such case; did you mean train-18m"):
        run(["train-tiny", "train-18n"], CPU, heard.append, n=1, warmup=0)
    assert not heard
    with pytest.raises(InputError, match="scale"):
        run_case("train-tiny", CPU, scale=0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (1.0, 5.0)])
def test_percentiles_lie_between_neighbours(share: float, expected: float) -> None:
    assert bench._percentile([5.0, 1.0, 3.0, 2.0, 4.0], share) == pytest.approx(expected)


@pytest.mark.parametrize("bias", [False, True])
def test_the_plain_loops_parameters_are_those_of_the_formula(bias: bool) -> None:
    shape = Shape(vocab_size=50, d_model=16, n_blocks=3, n_heads=2, max_seq_len=32, bias=bias)
    counted = sum(p.numel() for p in PlainLoop(shape, CPU).model.parameters())
    d = 16
    block = 12 * d * d + (13 * d if bias else 2 * d)  # GPT-2's 12 d² + 13 d with biases
    assert counted == shape.count_parameters() == 50 * d + 32 * d + 3 * block + (2 * d if bias else d)


def test_the_plain_loops_shape_counts_what_gpt2_has() -> None:
    shape = Shape(vocab_size=50257, d_model=768, n_blocks=12, n_heads=12, max_seq_len=1024, bias=True)
    assert shape.count_parameters() == 124_439_808


def test_the_plain_loop_is_causal_and_starts_near_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = PlainLoop(Shape(vocab_size=50, d_model=16, n_blocks=2, n_heads=2, max_seq_len=32), CPU).model
    ids = torch.randint(50, (2, 33))
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    assert model(inputs, targets).item() == pytest.approx(math.log(50), abs=0.1)
    targets[:, 20:] = -100  # does not count
    later, earlier = inputs.clone(), inputs.clone()
    later[:, 20] = (later[:, 20] + 1) % 50
    earlier[:, 10] = (earlier[:, 10] + 1) % 50
    assert torch.equal(model(later, targets), model(inputs, targets))
    assert not torch.equal(model(earlier, targets), model(inputs, targets))


def test_the_plain_loops_loss_falls_on_a_repeated_batch() -> None:
    torch.manual_seed(0)
    loop = PlainLoop(Shape(vocab_size=50, d_model=16, n_blocks=2, n_heads=2, max_seq_len=32), CPU, lr=1e-2)
    ids = torch.randint(50, (4, 33))
    losses = [loop.step(ids).item() for _ in range(30)]
    assert losses[-1] < losses[0] - 1.0


def test_the_comparison_relates_both_loops_round_by_round() -> None:
    result = compare(
        Case(model=TINY, batch=2, precision="float32", on_gpu=False), rounds=3, steps=2, compilation="off", rotary=False
    )
    for clock in ("wall", "processor"):
        seen = result[clock]
        ratios = seen["speed_ratio"]
        expected = [b / a for a, b in zip(seen["ours_ms"], seen["plain_ms"], strict=True)]
        assert ratios["rounds"] == pytest.approx(expected)
        assert ratios["median"] == pytest.approx(statistics.median(expected))
    # Ours has rotary positions instead of a table of them.
    assert result["parameters"]["plain"] - result["parameters"]["ours"] == 32 * 16
