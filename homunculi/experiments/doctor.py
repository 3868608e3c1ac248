"""The self-test of a machine: does it compute what it should, can it train, write and compile?"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from homunculi.files import write_atomic
from homunculi.models import build


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the self-test. `value` is what was measured, in words or a number; `fix` helps when it failed."""

    name: str
    passed: bool
    value: str
    fix: str = ""


def examine(device: torch.device, folder: Path) -> Iterator[Finding]:
    """Test this machine, one finding at a time.

    Args:
        device: to compute on.
        folder: where runs would be written.
    """
    yield Finding("versions", True, f"Python {platform.python_version()}, torch {torch.__version__}")
    yield Finding("device", True, _device_name(device))
    for name, test in _TESTS.items():
        yield _tried(name, partial(test, device))
    yield _tried("disk", partial(_disk, folder))


def to_json(findings: list[Finding]) -> dict[str, Any]:
    return {"passed": all(f.passed for f in findings), "checks": [asdict(f) for f in findings]}


def _tried(name: str, test: Callable[[], tuple[bool, str, str]]) -> Finding:
    try:
        passed, value, fix = test()
    except Exception as error:  # whatever breaks here is the finding
        text = str(error).strip().splitlines()
        return Finding(name, False, f"{type(error).__name__}: {text[0][:200] if text else ''}", "see the error")
    return Finding(name, passed, value, "" if passed else fix)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"cuda: {torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    return f"{device.type}: {platform.machine()}, {torch.get_num_threads()} threads"


def _relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double().cpu() - want).norm() / want.norm()).item()


def _products(device: torch.device) -> tuple[bool, str, str]:
    """A float32 product against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    error = _relative_error(a.to(device) @ b.to(device), a.double() @ b.double())
    return error < 1e-4, f"relative error {error:.1e}", "this device computes products wrongly; use device=cpu"


def _attention(device: torch.device) -> tuple[bool, str, str]:
    """Fused causal attention against its definition in float64."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, 64, 32, generator=generator) for _ in range(3))
    fused = F.scaled_dot_product_attention(q.to(device), k.to(device), v.to(device), is_causal=True)
    scores = q.double() @ k.double().mT / 32**0.5
    hidden = torch.ones(64, 64, dtype=torch.bool).triu(1)
    error = _relative_error(fused, scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v.double())
    return error < 1e-4, f"relative error {error:.1e}", "fused attention is wrong on this device; use device=cpu"


def _gradients(device: torch.device) -> tuple[bool, str, str]:
    """The gradient of a small model against the same in float64 on the CPU."""
    torch.manual_seed(0)
    model = build("gpt", vocab_size=32, d_model=32, n_blocks=2, n_heads=2, max_seq_len=16)
    ids = torch.randint(0, 32, (2, 17))
    wanted = _embedding_gradient(model.double(), ids)
    got = _embedding_gradient(model.float().to(device), ids.to(device))
    error = _relative_error(got, wanted)
    return error < 1e-3, f"relative error {error:.1e}", "gradients are wrong on this device; use device=cpu"


def _embedding_gradient(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return model.embed.weight.grad.clone()


def _repeats(device: torch.device) -> tuple[bool, str, str]:
    """Ten updates twice from one seed: the same bits?"""
    first, second = _ten_updates(device), _ten_updates(device)
    same = torch.equal(first, second)
    wording = "the same bits twice" if same else f"differs by {(first - second).abs().max():.1e}"
    passed = same or device.type != "cpu"
    return passed, wording, "training on this CPU does not repeat; exact resume will not hold"


def _ten_updates(device: torch.device) -> torch.Tensor:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=32, d_model=32, n_blocks=2, n_heads=2, max_seq_len=16).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(0, 32, (4, 17), generator=torch.Generator().manual_seed(0)).to(device)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def _compiles(device: torch.device) -> tuple[bool, str, str]:
    """Whether torch.compile works here; runs fall back to eager code without it."""
    x = torch.randn(8, 8, device=device)
    try:
        compiled = torch.compile(lambda t: (t @ t).relu().sum())
        close = torch.allclose(compiled(x), (x @ x).relu().sum(), rtol=1e-3)
    except Exception as error:
        return True, f"not here ({type(error).__name__}); runs go on without it", ""
    return close, "works" if close else "gives another result", "set compile=off"


def _disk(folder: Path) -> tuple[bool, str, str]:
    """Writes whole files where runs go."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_atomic(Path(temporary) / "probe", "x" * 1000)
    free = shutil.disk_usage(folder).free / 2**30
    return free > 1, f"{free:.1f} GiB free", "less than 1 GiB is free; set HOMUNCULI_RUNS to a larger disk"


_TESTS: dict[str, Callable[[torch.device], tuple[bool, str, str]]] = {
    "products": _products,
    "attention": _attention,
    "gradients": _gradients,
    "repeats": _repeats,
    "compile": _compiles,
}
