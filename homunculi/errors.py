"""Errors that a person reads, and the process exit codes that go with them. Standard library only."""

from __future__ import annotations

import importlib
from types import ModuleType

DONE = 0
FAILURE = 1
BAD_INPUT = 2
CHECK_FAILED = 3
DIVERGED = 4
PREEMPTED = 75
INTERRUPTED = 130
TERMINATED = 143


class HomunculiError(Exception):
    """One clear line for the person at the terminal; `exit_code` becomes the exit status of the process."""

    exit_code = FAILURE


class InputError(HomunculiError):
    """Bad configuration, data or path. The message names the file or field and the fix."""

    exit_code = BAD_INPUT


class CheckFailed(HomunculiError):
    """A check ran and failed: a certificate, a self-test."""

    exit_code = CHECK_FAILED


class Diverged(HomunculiError):
    """A loss or gradient stopped being finite; the weights are those of before the update."""

    exit_code = DIVERGED


class Stopped(HomunculiError):
    """Training stopped on a signal, after a checkpoint. `exit_code` tells which signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def optional(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: dotted name of the package, for example ``pyarrow.parquet``.
        extra: the extra of this project that installs it.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module.split('.')[0]} is not installed: pip install 'homunculi[{extra}]' brings it"
        ) from error
