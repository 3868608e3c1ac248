"""Homunculi: a laboratory for brain-inspired language models.

`load(run)` gives a trained model, `certify(model, vocab_size=…, context=…)` a certificate for any module or function
from token ids to logits. Both are loaded on first use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .experiments.certify import certify as certify
    from .train.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "certify", "load"]

_LAZY = {"certify": ".experiments.certify", "load": ".train.loading"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'homunculi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
