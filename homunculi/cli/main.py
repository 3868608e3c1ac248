"""The program: collects the verbs, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import typer

from homunculi.cli.waiting import decide
from homunculi.errors import BAD_INPUT, FAILURE, INTERRUPTED, HomunculiError

if "torch" not in sys.modules:  # OpenMP reads it when torch is loaded
    decide(os.environ)

VERBS = (
    "train",
    "resume",
    "sample",
    "certify",
    "audit",
    "compare",
    "claims",
    "ablate",
    "scale",
    "scan",
    "skills",
    "report",
    "serve",
    "bench",
    "list",
    "taps",
    "diff",
    "doctor",
    "export",
    "import_",
)

_SMALLER = (
    "where this is training, lower train.micro_tokens or batch_tokens, or set train.cuda_graphs=off (captured graphs "
    "keep memory of their own) or instruments.watch=off (a second copy of the weights)"
)

app = typer.Typer(
    name="homunculi",
    help="A laboratory for brain-inspired language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in VERBS:
    importlib.import_module(f"{__package__}.{_verb}").add_to(app)


def main() -> None:
    """Run the command line and exit with the code that its outcome has."""
    sys.exit(_run())


def _run() -> int:
    try:
        outcome = app(standalone_mode=False)
    except HomunculiError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _say(f"the disk is full ({error}); free some space, then resume the run", FAILURE)
        raise
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # how the command-line library says it
            return _say(f"{error.format_message()}; homunculi --help lists what there is", BAD_INPUT)
        if type(error).__name__ == "OutOfMemoryError":  # torch's; it may not be loaded here
            said = ". ".join(" ".join(str(error).split()).split(". ")[:2])
            return _say(f"the device's memory is too small ({said}); {_SMALLER}", FAILURE)
        raise
    return outcome if isinstance(outcome, int) else 0


def _say(text: str, code: int) -> int:
    one_line = " ".join(text.split())
    print(f"homunculi: {one_line}", file=sys.stderr)
    return code
