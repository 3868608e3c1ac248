"""Homunculi: a laboratory for brain-inspired language models.

`load(run)` gives a trained model, `certify(model, vocab_size=…, context=…)` a certificate for any module or function
from token ids to logits. `run_with_cache`, `run_with_hooks`, `hooked` and `patch_from` read and replace what passes the
taps of a model, `changed` holds, scales, shuffles, patches or silences its signals for a while. All are loaded on first
use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .experiments.certify import certify as certify
    from .experiments.changing import changed as changed
    from .instruments.hooks import hooked as hooked
    from .instruments.hooks import patch_from as patch_from
    from .instruments.hooks import run_with_cache as run_with_cache
    from .instruments.hooks import run_with_hooks as run_with_hooks
    from .train.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "certify", "changed", "hooked", "load", "patch_from", "run_with_cache", "run_with_hooks"]

_LAZY = {
    "certify": ".experiments.certify",
    "changed": ".experiments.changing",
    "hooked": ".instruments.hooks",
    "load": ".train.loading",
    "patch_from": ".instruments.hooks",
    "run_with_cache": ".instruments.hooks",
    "run_with_hooks": ".instruments.hooks",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'homunculi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
