"""Tasks in words: for lists, and the table of ``docs/tasks.md``; ``python -m homunculi.tasks.described`` prints it."""

from __future__ import annotations

from homunculi.tasks import registry
from homunculi.tasks.registry import Dial, Task

_HEADINGS = (
    "task",
    "question",
    "dials: default (values) range",
    "only tested",
    "chance",
    "two tokens",
    "best",
    "source",
)


def defaults(task: Task) -> str:
    """The dials as a user would set them: ``pairs=8 length=64``, the one of the difficulty curve first."""
    order = sorted(task.dials, key=lambda name: name != task.swept)
    return " ".join(f"{name}={task.dials[name].default}" for name in order)


def table() -> str:
    """All tasks as a Markdown table, one line each; scores are those of the default dials."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    return "\n".join([*lines, *(_line(registry.get(name)) for name in registry.names())]) + "\n"


def _line(task: Task) -> str:
    dials = registry.settings(task, {})
    order = sorted(task.dials, key=lambda name: name != task.swept)
    beyond = ", ".join(f"{name} {_values(values)}" for name, values in task.beyond.items())
    scores = (task.chance(**dials), registry.ngram_ceiling(task, dials), task.ceiling(**dials))
    shown = ", ".join(f"`{name}` {_dial(task.dials[name])}" for name in order)
    cells = (f"`{task.name}`", task.question, shown, beyond, *(f"{score:.3f}" for score in scores), task.source)
    return "| " + " | ".join(cells) + " |"


def _dial(dial: Dial) -> str:
    return f"{dial.default} ({_values(dial.values)}) {dial.low}…{dial.high}"


def _values(values: tuple[registry.Number, ...]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    print(table(), end="")
