"""A battery: certify the architectures, train what is missing, and write down scores, curves and a report.

FOLDER/skills.json    everything below, replaced whole as cells finish
FOLDER/report.html
FOLDER/cells/         finished cells; another battery of the folder takes those that it shares
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from homunculi.errors import InputError, Stopped
from homunculi.experiments.certifying import CERTIFIED_CONTEXT, CERTIFIED_VOCABULARY, Certified, certificate_of
from homunculi.experiments.matching import TOLERANCE
from homunculi.experiments.skills import scores
from homunculi.experiments.skills.cells import Cell, Json, Store, configuration, described
from homunculi.experiments.skills.plan import Asked, Point, Settings, points, sized
from homunculi.experiments.skills.pool import Progress, first_failure, train_all
from homunculi.experiments.skills.sizing import Side, parameters_of, state_bytes
from homunculi.experiments.slots import shares_gpus
from homunculi.files import write_json
from homunculi.report.skills import write_skills_report
from homunculi.runs import clock
from homunculi.tasks import registry
from homunculi.tasks.registry import Task

RECORD = "skills.json"
FORMAT = 1
_WRITE_SECONDS, _WRITE_SHARE = 10.0, 20  # between two writings, and times what one took


class Reporter(Protocol):
    """Where a battery speaks to a person while it goes."""

    def plan(self, lines: list[str]) -> None: ...

    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...


@dataclass(slots=True)
class Battery:
    """Sides, tasks and settings, and the cells that have finished.

    Attributes:
        refused: side → why it is not scored.
        at_once: processes on each device; 0: everything in this process.
    """

    sides: Sequence[Side]
    tasks: Sequence[Asked]
    settings: Settings
    folder: Path
    reporter: Reporter
    devices: Sequence[str] = ("cpu",)
    at_once: int = 0
    command: str = ""
    results: dict[str, Json] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: list[Json] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    created: float = 0.0

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def carry_out(self) -> Json:
        """Plan, certify, train what is missing, write, and return the object of skills.json.

        Raises:
            InputError: impossible dials, or sides that cannot be made equal.
            Stopped: a signal asked for it; finished cells are kept.
            HomunculiError: cells failed; the record has the others.
        """
        self.created = clock.now()
        self.points = points(self.sides, self.tasks, self.settings)
        self.reporter.plan(self._described())
        self._make_folder()
        self._certify()
        ranked = [point for point in self.points if point.side not in self.refused]
        try:
            for cells in self._rounds(ranked):
                self._train(cells)
        except Stopped as stopped:
            raise Stopped(f"{stopped}; the same command goes on", stopped.exit_code) from stopped
        finally:
            record = self.write()
        if self.failed:
            raise first_failure(self.failed, self.folder)
        return record

    def _certify(self) -> None:
        """An architecture that sees what is to come would read answers off the rows."""
        for side in self.sides:
            config = replace(side.config, vocab_size=CERTIFIED_VOCABULARY, max_seq_len=CERTIFIED_CONTEXT)
            found = certificate_of(Certified(config), side.name, self.reporter.message)
            if found.get("causal") is False:
                said = "not causal: its certificate failed, so it may read answers ahead"
                self.refused[side.name] = str(found.get("reason") or said)
                self.reporter.message(f"{side.name} is refused: {self.refused[side.name]}")

    def _rounds(self, ranked: Sequence[Point]) -> Iterator[list[Cell]]:
        """Grids, then the other seeds at what was chosen; both at once where there is nothing to choose."""
        n = self.settings.seeds
        if len(self.settings.grid) == 1:
            whole = [(*point.grid, *point.other_seeds(point.grid[0], n)) for point in ranked]
            yield [cells[place] for place in range(n) for cells in whole]  # a battery that is stopped has first seeds
            return
        yield [cell for point in ranked for cell in point.grid]
        chosen = [(point, scores.chosen_of(point, self.results)) for point in ranked]
        others = [point.other_seeds(best, n) for point, best in chosen if best is not None]
        yield [cells[place] for place in range(n - 1) for cells in others]

    def _train(self, cells: Sequence[Cell]) -> None:
        """Train cells that the folder lacks, and read all that are there. The first ones settle which setting is best,
        so they have the folder written as they come."""
        last, took = clock.now(), 0.0

        def report(progress: Progress) -> None:
            nonlocal last, took
            self.reporter.progress(progress)
            if clock.now() - last > max(_WRITE_SECONDS, _WRITE_SHARE * took):
                began = clock.now()
                self._read(cells)
                self.write()
                last, took = clock.now(), clock.now() - began

        try:
            self.failed += train_all(cells, self.store, self.devices, self.at_once, report)
        finally:
            self._read(cells)

    def _read(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            key = cell.key
            if key not in self.results and (found := self.store.find(cell)) is not None:
                self.results[key] = found

    def write(self) -> Json:
        """Replace the record and the report, and return the record."""
        record = self.to_json()
        self._make_folder()
        try:
            write_json(self.folder / RECORD, record)
        except OSError as error:
            raise self._unwritable(error) from None
        with suppress(OSError, InputError):  # the numbers are in the record
            write_skills_report(self.folder)
        return record

    def _make_folder(self) -> None:
        """Before anything is trained, so that nothing is trained for a folder that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: cannot be written ({error.strerror}); choose other --results")

    def to_json(self) -> Json:
        """The object of skills.json; what has not finished is not there."""
        n = self.settings.seeds
        by_name = {asked.task.name: asked for asked in self.tasks}
        shown = [point for point in self.points if scores.chosen_of(point, self.results)]
        rows = [scores.point_json(point, by_name[point.task], self.results, n) for point in shown]
        return {
            "format": FORMAT,
            "scores": self._scores(rows),
            "points": rows,
            "beyond": [row for point in self._hardest(shown) for row in scores.beyond_json(point, self.results, n)],
            "depth": [row for point in shown if (row := scores.depth_json(point, self.results, n))],
            "tasks": [self._task_json(asked) for asked in self.tasks],
            "architectures": [self._side_json(side) for side in self.sides],
            "unequal": self._unequal(),
            "settings": self.settings.to_json(),
            "refused": self.refused,
            "failed": self.failed,
            "created": self.created,
            "command": self.command,
            "folder": str(self.folder),
        }

    def _hardest(self, shown: Sequence[Point]) -> list[Point]:
        """The last point of each curve: beyond training, the model that was trained nearest is asked."""
        return list({(point.side, point.task): point for point in shown}.values())

    def _scores(self, rows: Sequence[Json]) -> list[Json]:
        """Of the curves that are whole."""
        found = []
        for asked in self.tasks:
            for side in self.sides:
                own = [row for row in rows if (row["architecture"], row["task"]) == (side.name, asked.task.name)]
                if len(own) == len(asked.values(self.settings.quick)):
                    found.append(scores.score_json(own))
        return found

    def _task_json(self, asked: Asked) -> Json:
        task, values = asked.task, asked.values(self.settings.quick)
        dials = [asked.settled(value) for value in values]
        return {
            "name": task.name,
            "title": task.title,
            "question": task.question,
            "source": task.source,
            "dial": task.swept,
            "meaning": task.dials[task.swept].meaning,
            "values": list(values),
            "dials": {name: value for name, value in dials[0].items() if name != task.swept},
            "chance": [task.chance(**one) for one in dials],
            "ceiling": [task.ceiling(**one) for one in dials],
            "ngram": [_two_tokens(task, tuple(one.items())) for one in dials],
        }

    def _side_json(self, side: Side) -> Json:
        asked = self.tasks[0]
        dials = asked.settled(asked.values(self.settings.quick)[0])
        config = sized(side, asked.task, dials, self.settings.frame)
        length, state = asked.task.length(**dials), None
        with suppress(InputError):
            state = state_bytes(config, length)
        sizes = {"parameters": parameters_of(config), "state_bytes": state, "state_length": length}
        return {"name": side.name, "model": described(config)} | sizes

    def _unequal(self) -> list[Json]:
        """Sides that no shape makes equal to within 1 %, with the parameters that they have."""
        wanted = self.settings.frame.parameters
        if self.settings.frame.match != "parameters":
            return []
        sizes: dict[tuple[str, int], list[str]] = {}
        for point in self.points:
            n = parameters_of(configuration(point.grid[0].model))
            tasks = sizes.setdefault((point.side, n), []) if abs(n / wanted - 1) > TOLERANCE else []
            tasks += [point.task] if point.task not in tasks else []
        return [
            {"architecture": side, "parameters": n, "ratio": n / wanted, "tasks": tasks}
            for (side, n), tasks in sizes.items()
        ]

    def _described(self) -> list[str]:
        """The plan as lines for a person; the first word of each is its label."""
        settings, grid = self.settings, self.settings.grid
        n = len(self.points) * (len(grid) + settings.seeds - 1)
        sizes = [self._side_json(side) for side in self.sides]
        named = [f"{one['name']} ({one['parameters']:,} parameters beside tokens)" for one in sizes]
        few = " (a small grid: nothing is selected)" if len(grid) == 1 else ""
        in_turns = self.devices[0].startswith("cuda") and self.at_once > 1 and not shares_gpus()
        turns = ", in turns: start nvidia-cuda-mps-control -d first, and they run side by side" if in_turns else ""
        return [
            f"skills      {', '.join(named)}",
            f"tasks       {', '.join(asked.task.name for asked in self.tasks)}",
            f"equal       {settings.frame.match}",
            *(
                f"not equal   {one['architecture']}: {one['parameters']:,} ({one['ratio']:.3f})"
                for one in self._unequal()
            ),
            f"grid        lr {_listed(settings.lrs)} × weight decay {_listed(settings.wds)}{few}; the same for all",
            f"cells       at most {n:,}: {len(self.points)} points, {settings.seeds} seeds, "
            f"{settings.steps:,} steps of {settings.rows} rows",
            f"device      {', '.join(self.devices)}; {self.at_once or 1} at once on each{turns}",
            f"folder      {self.folder}",
        ]


@lru_cache(maxsize=1024)
def _two_tokens(task: Task, dials: tuple[tuple[str, Any], ...]) -> float:
    """Counted once, as records are written often."""
    return registry.ngram_ceiling(task, dict(dials))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


class Silent:
    """A reporter that says nothing."""

    def plan(self, lines: list[str]) -> None:
        """Nothing is shown."""

    def message(self, text: str) -> None:
        """Nothing is shown."""

    def progress(self, progress: Progress) -> None:
        """Nothing is shown."""
