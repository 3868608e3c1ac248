"""A comparison as values: its sides, what their runs came to, its folder, and what may be concluded from it.

    FOLDER/comparison.json        everything below, replaced whole after every change
    FOLDER/runs/<side>-s<seed>/   usual run directories
    FOLDER/tuning/<side>-lr<value>/
    FOLDER/report.html

Verdicts and intervals are computed from the runs each time; what a file says of them is not read. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

from homunculi.errors import InputError
from homunculi.evals.statistics import Interval, area_under, holm, paired_interval, tokens_to_reach, verdict
from homunculi.files import write_json
from homunculi.runs.directory import open_run

FORMAT = 1
RECORD = "comparison.json"
METRIC, COLUMN = "val/bpb", "val_bpb"
SKILL = "skill/"  # how metrics of tasks begin
NOTHING = "no difference shown"
LEVEL, ALPHA = 0.95, 0.05
CLAIM_SEEDS = 5
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")  # of a side: it becomes part of names of folders
_PLACES, _LEAST_P = 4, 0.0001
_TOLD = 3  # failed checks that a refusal names

Json = dict[str, Any]


@dataclass(slots=True)
class Side:
    """One of the models that are compared.

    Attributes:
        recipe, assignments: what was asked for, with what all sides share.
        changes: overrides that made its budget equal to the first side's.
        added: overrides that say when it is evaluated and saved, and on what kind of device.
        config: of its runs, but for seed and learning rate, as `config_to_json` writes it.
        budget, ratios: as `homunculi.experiments.matching` counted them.
        lr: of its runs; None until it is known.
        certificate: as `Certificate.to_json`, with the `key` of what was certified; None until there is one.
    """

    name: str
    recipe: str
    assignments: list[str]
    changes: dict[str, str]
    config: Json
    budget: Json
    ratios: dict[str, float]
    lr: float | None = None
    certificate: Json | None = None
    added: list[str] = field(default_factory=list)

    @property
    def refusal(self) -> str:
        """Why it is not ranked; empty where it may be, or is not certified yet."""
        found = self.certificate
        if found is None or found.get("causal") is True:
            return ""
        failed = [check for check in found.get("checks", []) if not check.get("passed")]
        told = [f"{check['name']} {check['value']:.1e} (limit {check['limit']:.0e})" for check in failed[:_TOLD]]
        shown = ", ".join(told) + (f" and {len(failed) - _TOLD} more" if len(failed) > _TOLD else "")
        seen = next((f"; {leaks['summary']}" for leaks in found.get("leaks", []) if leaks.get("summary")), "")
        return f"not causal: {shown or found.get('reason', 'no check passed')}{seen}"

    @property
    def ranked(self) -> bool:
        return self.certificate is not None and not self.refusal


@dataclass(slots=True)
class Comparison:
    """All that is known of a comparison.

    Attributes:
        match: what is equal between the sides.
        seeds: of the runs. factors: of the learning rate that are tried first, empty for none.
        sides: the first one is what the others are compared with.
        data: corpus, hash and counts of the text.
        skills: scores of small models of the sides (`homunculi.experiments.skills`), an entry a side, seed and task.
        tuning, runs, baselines: entries as in comparison.json. failed: runs that did not end, with their last message.
        refused: sides and runs that are not ranked, each with the reason.
    """

    folder: Path
    match: list[str]
    seeds: list[int]
    factors: list[float]
    sides: list[Side]
    data: Json = field(default_factory=dict)
    created: float = 0.0
    provenance: Json = field(default_factory=dict)
    tuning: list[Json] = field(default_factory=list)
    runs: list[Json] = field(default_factory=list)
    failed: list[Json] = field(default_factory=list)
    baselines: list[Json] = field(default_factory=list)
    refused: list[Json] = field(default_factory=list)
    skills: list[Json] = field(default_factory=list)

    @property
    def ranked(self) -> list[Side]:
        return [side for side in self.sides if side.ranked]

    def side(self, name: str) -> Side | None:
        return next((side for side in self.sides if side.name == name), None)

    def runs_of(self, name: str) -> dict[int, Json]:
        """Seed → finished run."""
        return {run["seed"]: run for run in self.runs if run["side"] == name}

    def failed_of(self, name: str) -> list[Json]:
        return [run for run in self.failed if run["side"] == name]

    def to_json(self) -> Json:
        """The object of comparison.json."""
        written = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"format": FORMAT, "metric": METRIC, "level": LEVEL} | written | {"pairs": pairs(self)}

    def write(self) -> None:
        """Replace FOLDER/comparison.json."""
        write_json(self.folder / RECORD, self.to_json())


def read(folder: Path | str) -> Comparison:
    """The comparison in `folder`.

    Raises:
        InputError: there is none, or its file is damaged or of a later program.
    """
    path = Path(folder) / RECORD
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {RECORD}, so it is no comparison; name at least two recipes") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it from a copy") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: is no comparison of format {FORMAT}; it is damaged or of another version")
    try:
        known = {one.name for one in fields(Side)}
        sides = [Side(**{name: side[name] for name in side.keys() & known}) for side in found.pop("sides")]
        own = {one.name for one in fields(Comparison)} - {"folder", "sides"}
        if unfit := next((side.name for side in sides if not NAME.fullmatch(side.name)), None):
            raise KeyError(f"{unfit} is no name of a side")
        if not all(len({len(run[key]) for key in ("tokens", "val_loss", COLUMN)}) == 1 for run in found["runs"]):
            raise KeyError("a curve is incomplete")
        return Comparison(Path(folder), sides=sides, **{name: found[name] for name in found.keys() & own})
    except (TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error}); restore it from a copy") from None


def run_path(side: str, seed: int) -> str:
    """Where a run lies inside the folder."""
    return f"runs/{side}-s{seed}"


def read_run(folder: Path, side: str, seed: int) -> Json:
    """What a finished run of the comparison came to: its entry in comparison.json."""
    relative = run_path(side, seed)
    run = open_run(folder / relative)
    info, lines = run.info(), run.metrics()
    evaluated = [line for line in lines if line.get("val/loss") is not None]
    speeds = [line["perf/tokens_per_s"] for line in lines[1:] or lines if line.get("perf/tokens_per_s")]
    streams = [event.get("stream_hash") for event in run.events() if event.get("kind") == "done"]
    samples = run.samples()
    return {
        "side": side,
        "seed": seed,
        "run": relative,
        "tokens": [line["tokens"] for line in evaluated],
        "val_loss": [line["val/loss"] for line in evaluated],
        COLUMN: [line[METRIC] for line in evaluated],
        "stream": streams[-1] if streams else None,
        "data_hash": info.get("data", {}).get("data_hash"),
        "tokens_per_s": median(speeds) if speeds else None,
        "parameters": info.get("budget", {}).get("parameters"),
        "seconds": lines[-1].get("seconds") if lines else None,
        "sample": samples[-1]["prompt"] + samples[-1]["text"] if samples else "",
    }


def pairs(comparison: Comparison) -> list[Json]:
    """Every other ranked side against the first ranked one, over the seeds that both have finished.

    The p values of all pairs are judged together (Holm), those of the ends, of the areas and of the skills apart. With
    fewer than two seeds a pair has no interval and no verdict. Pairs of skills have a `metric` of their own, which is
    better where it is higher, and come last.
    """
    names = [side.name for side in comparison.ranked]
    found = [_pair(comparison, names[0], name) for name in names[1:]]
    found = [pair for pair in found if pair["n"] or pair["failed"]["a"] or pair["failed"]["b"]]
    _judge(found)
    _judge([pair["area"] for pair in found if pair["area"] is not None])
    tasks = dict.fromkeys(entry["task"] for entry in comparison.skills)
    skilled = [_skill_pair(comparison, names[0], name, task) for name in names[1:] for task in tasks]
    _judge(skilled, lower_is_better=False)
    return found + skilled


def _skill_pair(comparison: Comparison, a: str, b: str, task: str) -> Json:
    of_a, of_b = (
        {one["seed"]: one["score"] for one in comparison.skills if (one["side"], one["task"]) == (name, task)}
        for name in (a, b)
    )
    seeds = [seed for seed in of_a if seed in of_b]
    values = [[of[seed] for seed in seeds] for of in (of_a, of_b)]
    differences = [y - x for x, y in zip(*values, strict=True)]
    named = {"a": a, "b": b, "metric": SKILL + task, "seeds": seeds, "differences": differences}
    rest: Json = {"points": [], "area": None, "tokens_to_reach": None, "failed": {"a": 0, "b": 0}}
    return named | _described(*values) | rest


def _pair(comparison: Comparison, a: str, b: str) -> Json:
    of_a, of_b = comparison.runs_of(a), comparison.runs_of(b)
    seeds = [seed for seed in comparison.seeds if seed in of_a and seed in of_b]
    runs_a, runs_b = [of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds]
    ends = [(run_a[COLUMN][-1], run_b[COLUMN][-1]) for run_a, run_b in zip(runs_a, runs_b, strict=True)]
    named = {"a": a, "b": b, "metric": METRIC, "seeds": seeds}
    return {
        **named,
        **_described([x for x, _ in ends], [y for _, y in ends]),
        "differences": [y - x for x, y in ends],
        "points": _points(runs_a, runs_b),
        "area": _area(runs_a, runs_b),
        "tokens_to_reach": _reaching(runs_a, runs_b),
        "failed": {"a": len(comparison.failed_of(a)), "b": len(comparison.failed_of(b))},
    }


def _described(a: Sequence[float], b: Sequence[float]) -> Json:
    """Difference, interval and p; without two seeds the mean difference alone."""
    if len(a) < 2:
        mean = fmean(b) - fmean(a) if a else None
        return {"difference": mean, "low": None, "high": None, "n": len(a), "p": None}
    return _interval_json(paired_interval(a, b, LEVEL))


def _interval_json(interval: Interval) -> Json:
    return {one.name: getattr(interval, one.name) for one in fields(interval)}


def _judge(found: list[Json], lower_is_better: bool = True) -> None:
    """Put adjusted p and verdict into descriptions that have an interval; None into the others."""
    judged = [one for one in found if one["p"] is not None]
    for one, adjusted in zip(judged, holm([one["p"] for one in judged]) if judged else [], strict=True):
        interval = Interval(*(one[part.name] for part in fields(Interval)))
        said = verdict(interval, lower_is_better=lower_is_better, alpha=ALPHA, adjusted_p=adjusted)
        one |= {"adjusted_p": adjusted, "verdict": said}
    for one in found:
        one.setdefault("adjusted_p", None)
        one.setdefault("verdict", None)


def _aligned(runs_a: list[Json], runs_b: list[Json]) -> bool:
    """Whether all runs were evaluated equally often, so that evaluation k of each is at the same share of its run."""
    return len({len(run["tokens"]) for run in (*runs_a, *runs_b)}) == 1


def _points(runs_a: list[Json], runs_b: list[Json]) -> list[Json]:
    """The difference at each evaluation, at the first side's count of tokens."""
    if len(runs_a) < 2 or not _aligned(runs_a, runs_b):
        return []
    found = []
    for k, tokens in enumerate(runs_a[0]["tokens"]):
        first, second = ([run[COLUMN][k] for run in runs] for runs in (runs_a, runs_b))
        interval = paired_interval(first, second, LEVEL)
        found.append({"tokens": tokens} | {name: getattr(interval, name) for name in ("difference", "low", "high")})
    return found


def _area(runs_a: list[Json], runs_b: list[Json]) -> Json | None:
    """The mean height of the curves, from the first evaluation to the last: who learns faster."""
    runs = (*runs_a, *runs_b)
    if not runs or not _aligned(runs_a, runs_b) or len(runs[0]["tokens"]) < 2:
        return None
    heights = [[area_under(run["tokens"], run[COLUMN]) for run in side] for side in (runs_a, runs_b)]
    return _described(*heights)


def _reaching(runs_a: list[Json], runs_b: list[Json]) -> Json | None:
    """Tokens after which the mean curve of each side is down to the loss that the first side's ends with."""
    if not runs_a or not _aligned(runs_a, runs_b):
        return None
    target = fmean(run["val_loss"][-1] for run in runs_a)
    found: Json = {"loss": target}
    for name, runs in (("a", runs_a), ("b", runs_b)):
        curve = [fmean(values) for values in zip(*(run["val_loss"] for run in runs), strict=True)]
        found[name] = tokens_to_reach(runs[0]["tokens"], curve, target)
    return found


def written(comparison: Comparison) -> list[str]:
    """The conclusions in sentences, for somebody who has read nothing else."""
    lines = [line for pair in pairs(comparison) for line in _sentences(pair, comparison)]
    for side in comparison.ranked:
        diverged = sum(run["state"] == "diverged" for run in comparison.failed_of(side.name))
        if diverged:
            lines.append(
                f"{side.name}: {diverged} of {len(comparison.seeds)} runs diverged, which counts against it: its "
                "figures are those of the runs that did not"
            )
    lines += [f"{one['run']} did not end ({one['state']}): {one['reason']}" for one in comparison.failed]
    lines += [f"{one['run']} is not ranked: {one['reason']}" for one in comparison.refused]
    if any(0 < pair["n"] < CLAIM_SEEDS for pair in pairs(comparison)):
        lines.append(f"fewer than {CLAIM_SEEDS} seeds are a first look; a claim needs --seeds {CLAIM_SEEDS} or more")
    return lines


def _sentences(pair: Json, comparison: Comparison) -> list[str]:
    a, b, n = pair["a"], pair["b"], pair["n"]
    if pair["metric"].startswith(SKILL):
        return [_skill_sentence(pair)]
    if pair["verdict"] is None:
        return [f"{b} against {a}: no verdict; {n} seeds have ended on both sides, and 2 are needed"]
    mean = fmean(run[COLUMN][-1] for run in comparison.runs_of(a).values())
    share = f", {100 * pair['difference'] / mean:+.1f} % of {mean:.{_PLACES}f}" if mean and pair["difference"] else ""
    facts = f"{_spread(pair)}, n = {n}, {_p(pair)}{share}"
    if pair["verdict"] == NOTHING:
        lines = [f"{b} and {a}: no difference shown at the end: {facts}"]
    else:
        lines = [f"{b} is {pair['verdict']} than {a}: {facts}"]
    if pair["verdict"] == NOTHING and pair["p"] < ALPHA:
        lines[0] += "; by itself it would count, among so many pairs it does not"
    if (area := pair["area"]) is not None and area["verdict"] is not None:
        lines.append(f"{_pace(area['verdict'], a, b)}: {_spread(area)} on average over the run")
    if reach := _reach_sentence(pair):
        lines.append(reach)
    return lines


def _skill_sentence(pair: Json) -> str:
    """What a small model of b can do more or less often than one of a."""
    a, b, task = pair["a"], pair["b"], pair["metric"].removeprefix(SKILL)
    if pair["verdict"] is None:
        return f"{b} against {a} at {task}: no verdict; 2 seeds are needed"
    said = f"{b} and {a}: {NOTHING}" if pair["verdict"] == NOTHING else f"{b} is {pair['verdict']} than {a}"
    spread = f"{pair['difference']:+.3f} accuracy ({pair['low']:.3f} … {pair['high']:.3f})"
    return f"{said} at {task}: {spread}, n = {pair['n']}, {_p(pair)}"


def _pace(verdict: str, a: str, b: str) -> str:
    if verdict == NOTHING:
        return f"{b} learns neither faster nor more slowly than {a}, as far as it shows"
    return f"{b} learns {'faster' if verdict == 'better' else 'more slowly'} than {a}"


def _spread(one: Json) -> str:
    low, high = one["low"], one["high"]
    return f"{one['difference']:+.{_PLACES}f} bits/byte ({low:.{_PLACES}f} … {high:.{_PLACES}f})"


def _p(pair: Json) -> str:
    def shown(p: float) -> str:
        return f"= {p:.2g}" if p >= _LEAST_P else f"< {_LEAST_P}"

    alone, together = shown(pair["p"]), shown(pair["adjusted_p"])
    return f"p {alone}" + ("" if pair["adjusted_p"] == pair["p"] else f" (of all pairs together {together})")


def _reach_sentence(pair: Json) -> str:
    reach = pair["tokens_to_reach"]
    if pair["verdict"] == NOTHING or reach is None or not reach["a"]:
        return ""
    if reach["b"] is None:
        return (
            f"{pair['b']} does not reach the loss that {pair['a']} ends with ({reach['loss']:.{_PLACES}f} nats a token)"
        )
    share = reach["b"] / reach["a"]
    return f"{pair['b']} reaches the loss that {pair['a']} ends with after {share:.2f} times the tokens"
