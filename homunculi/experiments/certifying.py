"""Certificates of a comparison's sides: made once for a configuration and a state of the code, and kept.

    FOLDER/<key>.json       one certificate, where FOLDER is $HOMUNCULI_CERTIFICATES, or `certificates` under the root
                            of runs

The key follows from architecture, configuration, interventions, the code of the models and that of the certificate, and
from nothing of the machine: the folder may be filled on one machine and carried to another. All checks are made with a
small vocabulary and short rows; causality alone is asked again at the full context, where a look may show that is not
there in short rows.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import homunculi
from homunculi.errors import InputError
from homunculi.experiments.certificate import Certificate
from homunculi.experiments.certify import certify, certify_longer
from homunculi.experiments.subject import first_line, same_random_state
from homunculi.files import write_json
from homunculi.models import get, name_of
from homunculi.runs.directory import runs_root
from homunculi.settings import to_json
from homunculi.text.streams import hash_json
from homunculi.train import interventions

CERTIFIED_VOCABULARY, CERTIFIED_CONTEXT = 256, 128
TRIAL_SECONDS = 15.0
_MODEL_ROOMS = ("core", "parts", "models")
_CERTIFIER = (
    "causality",
    "certificate",
    "certify",
    "certifying",
    "invariance",
    "leaks",
    "margins",
    "subject",
    "trial",
)

Json = dict[str, Any]


class Certified(NamedTuple):
    """What a certificate is about: a model's configuration, and the interventions that it is trained with."""

    model: Any
    interventions: tuple[str, ...] = ()


def certificate_of(
    certified: Certified, name: str, message: Callable[[str], None], known: Mapping[str, Json] | None = None
) -> Json:
    """The certificate with its key: one of those known, or of the folder, else made now and put there.

    Args:
        name: for what is said to a person.
        known: by key. One that could not be made is tried again.

    Raises:
        InputError: the folder cannot be written.
    """
    key = key_of(certified)
    found = (known or {}).get(key) or kept(key)
    if found is None or "reason" in found:
        message(f"certifying {name}")
        found = make_certificate(certified) | {"key": key}
        if "reason" not in found:
            _keep(path_of(key), found)
    return found


def _keep(path: Path, certificate: Json) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, certificate)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error}); set HOMUNCULI_CERTIFICATES") from None


def path_of(key: str) -> Path:
    """Where the certificate of that key is kept."""
    return Path(os.environ.get("HOMUNCULI_CERTIFICATES") or runs_root() / "certificates") / f"{key}.json"


def kept(key: str) -> Json | None:
    """The certificate of that key in the folder; None where there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        found = json.loads(path_of(key).read_bytes())
        checks = [(check["name"] + "", check["passed"] is True, float(check["value"])) for check in found["checks"]]
        if found["key"] == key and isinstance(found["causal"], bool) and checks:
            return dict(found)
    return None


def key_of(certified: Certified) -> str:
    """A hash of all that decides a certificate."""
    small, full = _small(certified.model), _narrow(certified.model)
    changed = certified.interventions
    described: Json = {"architecture": name_of(small), "config": to_json(small), "context": full.max_seq_len}
    described |= {"code": code_hash(), "certifier": _certifier_hash(), "trial_seconds": TRIAL_SECONDS}
    described |= {"interventions": changed, "how": hash_of(interventions)} if changed else {}
    return hash_json(described | {"source": hash_of(get(name_of(small)).model_type)})[:16]


def make_certificate(certified: Certified) -> Json:
    """The certificate of a freshly built model; one that cannot be made says so and is not causal."""
    small, full = _small(certified.model), _narrow(certified.model)
    try:
        built = _built(certified, small)
        found = certify(built, small.vocab_size, small.max_seq_len, trial_seconds=TRIAL_SECONDS)
        if found.causal and full.max_seq_len > small.max_seq_len:
            longer = certify_longer(_built(certified, full), full.vocab_size, full.max_seq_len, small.max_seq_len)
            found = _together(found, longer)
    except Exception as error:  # whatever its code raises: without a certificate it is not ranked
        reason = f"it could not be certified ({first_line(error)})"
        return {"causal": False, "causal_in_training": False, "checks": [], "reason": reason}
    return found.to_json() | {"vocab_size": small.vocab_size, "context": full.max_seq_len}


def _together(short: Certificate, longer: Certificate) -> Certificate:
    return replace(
        short,
        causal=short.causal and longer.causal,
        causal_in_training=short.causal_in_training and longer.causal_in_training,
        checks=short.checks + longer.checks,
        notes=short.notes + longer.notes,
        leaks=short.leaks + longer.leaks,
    )


def _built(certified: Certified, config: Any) -> torch.nn.Module:
    with same_random_state():
        torch.manual_seed(0)
        built = get(name_of(config)).model_type(config)
        interventions.intervene(built, certified.interventions)
    return built


def _small(model: Any) -> Any:
    """A model's configuration with a small vocabulary and context, where it takes them."""
    return _resized(
        model,
        vocab_size=min(CERTIFIED_VOCABULARY, model.vocab_size),
        max_seq_len=min(CERTIFIED_CONTEXT, model.max_seq_len),
    )


def _narrow(model: Any) -> Any:
    """The same at its full context."""
    return _resized(model, vocab_size=min(CERTIFIED_VOCABULARY, model.vocab_size), max_seq_len=model.max_seq_len)


def _resized(model: Any, **sizes: int) -> Any:
    for names in (tuple(sizes), ("vocab_size",), ("max_seq_len",)):
        with suppress(InputError, ValueError):
            return replace(model, **{name: sizes[name] for name in names})
    return model


@cache  # the code that runs is the code as it was when it was imported
def code_hash() -> str:
    """A hash of the code that models are made of."""
    root = Path(homunculi.__file__).parent
    return hash_of_files(root, sorted(path for room in _MODEL_ROOMS for path in (root / room).rglob("*.py")))


@cache
def _certifier_hash() -> str:
    """A hash of the code that makes certificates."""
    return hash_of_files(Path(__file__).parent, [Path(__file__).parent / f"{name}.py" for name in _CERTIFIER])


def hash_of_files(root: Path, paths: list[Path]) -> str:
    """A hash of files and of where they lie below `root`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def hash_of(code: Any) -> str:
    """A hash of the file that a module or class stands in, and of those beside it in its package; empty without one."""
    with suppress(OSError, TypeError):
        path = Path(inspect.getfile(code))
        packaged = (path.parent / "__init__.py").exists()
        return hash_of_files(path.parent, sorted(path.parent.rglob("*.py")) if packaged else [path])
    return ""
