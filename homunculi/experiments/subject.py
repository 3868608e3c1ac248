"""What certification works on: a private copy of a model, in float64 where possible, its parameters perturbed.

Float64 separates a leak, however small, from rounding: float32 roundings of a deep model reach 1e-5, which is also the
size of real leaks at initialisation. A model that asks for float32 by name inside its forward gets float64 as well.
The perturbation is there because a parameter that starts at zero hides whatever passes through it.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError

NOISE = 0.02
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
LOW_PRECISION_LIMIT = 3e-2
_GLANCE = 16

_NARROW = {torch.float32, torch.float16, torch.bfloat16}
_NARROW_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


class Subject:
    """A model ready to be questioned.

    Args:
        call: token ids (B, T) → logits (B, T, V), or an object or mapping that holds them as `logits`.
        module: the module behind `call`, None for a plain function.
        wide: compute in float64, whatever type the code names.
        seed: of every forward's random draws.

    Attributes:
        limit: largest relative difference that counts as rounding; set by `measure_precision`.
    """

    def __init__(self, call: Callable[..., Any], module: nn.Module | None, *, wide: bool, seed: int) -> None:
        self.call, self.module, self.wide, self.seed = call, module, wide, seed
        self.limit = LIMITS[torch.float64] if wide else LIMITS[torch.float32]
        self.device = device_of(module)
        self._buffers = {} if module is None else {name: b.clone() for name, b in module.named_buffers()}

    def logits(self, ids_BT: Tensor, *, training: bool = False, seed: int | None = None, **more: Any) -> Tensor:
        """Logits (B, T, V) with the random generators freshly seeded and all buffers as they were at first.

        Raises:
            InputError: the model returns something else than logits (B, T, V).
        """
        if self.module is not None:
            self._restore_buffers()
            self.module.train(training)
        torch.manual_seed(self.seed if seed is None else seed)
        with self.types():
            logits_BTV = logits_in(self.call(ids_BT.to(self.device, copy=True), **more))
        if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != ids_BT.shape:
            raise InputError(f"expected logits (B, T, V) for ids {tuple(ids_BT.shape)}, got {tuple(logits_BTV.shape)}")
        return logits_BTV

    @contextmanager
    def types(self) -> Iterator[None]:
        """Float64 for everything computed inside, if this subject is wide."""
        if not self.wide:
            yield
            return
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _ReadAsFloat64():
                yield
        finally:
            torch.set_default_dtype(before)

    def seconds(self, ids_BT: Tensor) -> float:
        """How long a forward takes."""
        began = time.perf_counter()
        self.logits(ids_BT)[..., -1:].cpu()
        return time.perf_counter() - began

    def measure_precision(self, ids_BT: Tensor) -> None:
        """Set `limit` by the least precise type that any operation of a forward gives."""
        found = {torch.float32}  # assumed of operations that cannot be watched
        for part_BT in (ids_BT[:, :_GLANCE], ids_BT):
            try:
                with _Precisions() as precisions:
                    found = {self.logits(part_BT).dtype} | precisions.seen
                break
            except Exception:  # a model of one length only, or one that no mode can watch
                continue
        self.limit = max(LIMITS.get(dtype, LOW_PRECISION_LIMIT) for dtype in found)

    def changed_tensors(self, ids_BT: Tensor) -> list[str]:
        """Names of parameters and buffers that an evaluating forward changes, adds or takes away."""
        if self.module is None:
            return []
        self._restore_buffers()
        before = {name: t.clone() for name, t in _tensors(self.module)}
        self.logits(ids_BT)
        after = dict(_tensors(self.module))
        return sorted(n for n in before.keys() | after.keys() if not _same(before.get(n), after.get(n)))

    def _restore_buffers(self) -> None:
        assert self.module is not None
        for name, buffer in self.module.named_buffers():
            saved = self._buffers.get(name)
            if saved is not None and saved.shape == buffer.shape:
                buffer.copy_(saved)


class _ReadAsFloat64(TorchFunctionMode):
    """Every narrower type named in a call is read as float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func in _NARROW_CASTS else func
        wide = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*(_widened(arg) for arg in args), **wide)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class _Precisions(TorchDispatchMode):
    """Notes the floating types that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                self.seen.add(leaf.dtype.to_real())
        return result


def logits_in(output: Any) -> Tensor:
    """The logits of whatever a model returned.

    Raises:
        InputError: there are none.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(output, tuple) and output and not hasattr(output, "logits"):
        output = output[0]
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(f"expected logits (B, T, V) or an object with .logits, got {type(output).__name__}")
    return logits


def device_of(module: nn.Module | None) -> torch.device:
    """Where a module's tensors lie."""
    first = None if module is None else next((t for _, t in _tensors(module)), None)
    return torch.device("cpu") if first is None else first.device


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


@torch.no_grad()
def add_noise(module: nn.Module, seed: int) -> None:
    """Add seeded normal noise to every parameter, in place.

    Its standard deviation is 0.02, times the parameter's root mean square where that is above 1. Frozen parameters
    (a mask that is stored as one, for example) stay as they are, unless all parameters are frozen.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in module.parameters() if p.is_floating_point() and p.numel()]
    for parameter in [p for p in parameters if p.requires_grad] or parameters:
        rms = parameter.double().square().mean().sqrt().item()
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        noise *= NOISE * (max(1.0, rms) if rms < float("inf") else 1.0)
        parameter.add_(noise.to(parameter.device, parameter.dtype))


@contextmanager
def prepared(model: Callable[..., Any], ids_BT: Tensor, seed: int, notes: list[str]) -> Iterator[Subject]:
    """A subject made of `model`, which stays as it is; what could not be done as usual is added to `notes`.

    Raises:
        InputError: the model does not take ids of that shape, or returns no logits.
    """
    module = model if isinstance(model, nn.Module) else None
    with ExitStack() as stack:
        stack.enter_context(same_random_state())
        stack.enter_context(torch.no_grad())
        if module is None:
            subject = Subject(model, None, wide=False, seed=seed)
            _probe(subject, ids_BT)
        else:
            subject = _copied(module, ids_BT, seed, notes) or _in_place(module, ids_BT, seed, stack)
        subject.measure_precision(ids_BT)
        yield subject


@contextmanager
def same_random_state() -> Iterator[None]:
    """Put torch's random generators back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


def _probe(subject: Subject, ids_BT: Tensor) -> bool:
    """Whether a first forward gives numbers.

    Raises:
        InputError: it fails.
    """
    try:
        return not subject.logits(ids_BT).isnan().any()
    except Exception as error:
        raise InputError(f"certify: the model fails on ids {tuple(ids_BT.shape)}: {first_line(error)}") from error


def _copied(module: nn.Module, ids_BT: Tensor, seed: int, notes: list[str]) -> Subject | None:
    """The subject of a perturbed float64 copy; of a plainer copy where that one gives no numbers; None without one."""
    refusals: list[str] = []
    for wide, noisy in ((True, True), (False, True), (True, False), (False, False)):
        try:
            copied = copy.deepcopy(module)
        except Exception as error:
            notes.append(f"cannot be copied ({first_line(error)}): checked in place, in its own type, then put back")
            return None
        subject = _variant(copied, wide, noisy, seed)
        last = not (wide or noisy)
        try:
            if _probe(subject, ids_BT) or last:
                break
            refusals.append("gives no numbers once perturbed")
        except InputError as error:
            if last:
                raise
            refusals.append(f"cannot run in float64 ({first_line(error.__cause__ or error)})")
    if refusals:
        how = ("in float64" if wide else "in its own type") + (", perturbed" if noisy else ", unperturbed")
        notes.append(f"{refusals[0]}; checked {how}")
    return subject


def _variant(module: nn.Module, wide: bool, noisy: bool, seed: int) -> Subject:
    if wide:
        module = (module.cpu() if device_of(module).type == "mps" else module).double()
    if isinstance(module, LanguageModel):
        module.compute_dtype = None
    if noisy:
        add_noise(module, seed)
    return Subject(module, module.requires_grad_(False), wide=wide, seed=seed)


def _in_place(module: nn.Module, ids_BT: Tensor, seed: int, stack: ExitStack) -> Subject:
    """The subject of the module itself, perturbed now and put back when the stack closes."""
    stack.enter_context(_put_back(module))
    add_noise(module, seed)
    subject = Subject(module, module.requires_grad_(False), wide=False, seed=seed)
    _probe(subject, ids_BT)
    return subject


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    values = {name: t.detach().clone() for name, t in _tensors(module)}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    modes = {name: m.training for name, m in module.named_modules()}
    try:
        yield
    finally:
        for name, tensor in _tensors(module):
            tensor.copy_(values.get(name, tensor))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags[name])
        for name, part in module.named_modules():
            part.training = modes[name]


def first_line(error: BaseException) -> str:
    """The type and first line of an error, for a note."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:200] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0][:200]}"
