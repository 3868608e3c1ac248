"""Stored results of claims: ID.json in a folder, small enough to be kept with the code. They add up.

    {"format", "id", "size", "common": assignments of all sides,
     "parts": {name: a comparison: match, data, sides, runs, failed, refused, tuning, baselines, factors},
     "measured": {name: other measurements}, "provenance": [one entry a call],
     "finding": for people who read the file; it is never read back}

No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from homunculi.errors import InputError
from homunculi.experiments.claims.evidence import Evidence, Finding, Json, Part
from homunculi.experiments.comparison import COLUMN, METRIC, NAME, Comparison, Side
from homunculi.files import write_atomic
from homunculi.runs.directory import RunDirectory

FORMAT = 1
# Settings of a single run or machine, kept elsewhere or nowhere.
_OWN = ("seed", "data_seed", "lr", "device", "train.cuda_graphs")
_FOR_PEOPLE = ("sample_every", "checkpoint_every", "output", "instruments")  # settings that change no result
LEAP = 0.1  # share of the lowest training loss so far beyond which it leapt
_LINES = 4  # how deep a stored result is spread over lines: a side and a run have one each
_SPLIT = ("parameters", "embedding_parameters", "non_embedding_parameters", "flops_per_token")


# From a comparison to a part of a result.


def condense(comparison: Comparison) -> Json:
    """What a stored result keeps of a comparison; its seeds are those that its runs were given."""
    sides = [_side(side) for side in comparison.sides]
    shift = {side.name: side.config["data_seed"] for side in comparison.sides}
    runs = [_run(comparison, run) | {"seed": run["seed"] + shift[run["side"]]} for run in comparison.runs]
    failed = [
        {key: one[key] for key in ("side", "state", "reason")} | {"seed": one["seed"] + shift[one["side"]]}
        for one in comparison.failed
        if one["state"] == "diverged"  # what failed for other reasons says nothing of the model
    ]
    keys = ("side", "lr", "factor", "val_bpb", "val_loss", "tokens")
    return {
        "match": list(comparison.match),
        "metric": METRIC,
        "data": dict(comparison.data),
        "factors": list(comparison.factors),
        "sides": sides,
        "runs": _in_order(runs, sides),
        "failed": _in_order(failed, sides),
        "refused": [{key: one[key] for key in ("side", "seed", "reason") if key in one} for one in comparison.refused],
        "tuning": [{key: trial[key] for key in (*keys, "key") if key in trial} for trial in comparison.tuning],
        "baselines": [dict(one) for one in comparison.baselines],
    }


def _side(side: Side) -> Json:
    certificate = side.certificate
    if certificate is not None:
        failed = [check["name"] for check in certificate.get("checks", []) if not check.get("passed")]
        certificate = {key: certificate.get(key) is True for key in ("causal", "causal_in_training")}
        certificate |= {"failed": failed}
    own = _without(side.config, (*_OWN, *_FOR_PEOPLE))
    return {
        "name": side.name,
        "recipe": side.recipe,
        "assignments": without_own(side.assignments),
        "changes": dict(side.changes),
        "config": own,
        "seed_offset": side.config["seed"] - side.config["data_seed"],
        "budget": {key: side.budget[key] for key in _SPLIT},
        "ratios": dict(side.ratios),
        "lr": side.lr,
        "certificate": certificate,
    }


def _without(config: Json, names: Sequence[str]) -> Json:
    """A configuration without settings of these dotted names."""
    kept = {key: value for key, value in config.items() if key not in names}
    for name in names:
        section, _, key = name.partition(".")
        if key and isinstance(kept.get(section), dict):
            kept[section] = {one: value for one, value in kept[section].items() if one != key}
    return kept


def without_own(assignments: list[str]) -> list[str]:
    """Assignments but for those of single runs and machines."""
    return [word for word in assignments if word.partition("=")[0].strip() not in _OWN]


def _run(comparison: Comparison, run: Json) -> Json:
    keys = ("side", "seed", "tokens", "val_loss", COLUMN, "stream", "data_hash", "tokens_per_s", "seconds")
    known = {key: run[key] for key in ("key", "taken") if run.get(key)}
    statistics = run["statistics"] if "statistics" in run else _statistics(comparison.folder / run["run"])
    return {key: run.get(key) for key in keys} | {"statistics": statistics} | known


def _statistics(folder: Path) -> Json:
    """The mean of what a model said of itself in the last tenth of its training, and how its training loss went."""
    lines = RunDirectory(folder).metrics() if folder.is_dir() else []
    last = [line for line in lines if line["step"] > 0.9 * lines[-1]["step"]]
    values: dict[str, list[float]] = {}
    for line in last:
        for key, value in line.items():
            if key.startswith("model/") and isinstance(value, (int, float)) and math.isfinite(value):
                values.setdefault(key.removeprefix("model/"), []).append(value)
    found = {key: float(f"{fmean(of_key):.6g}") for key, of_key in values.items()}
    return found | of_training([line["train/loss"] for line in lines if "train/loss" in line])


def of_training(losses: Sequence[float]) -> Json:
    """Of the training losses that a run logged, in order: their mean over the last tenth, nats a token, and how often
    they leapt, that is rose by more than a tenth above the lowest so far, the first loss included, or were not finite;
    once above, they leap again only after a loss that is not."""
    if not losses:
        return {}
    lowest, leaps, above = losses[0], 0, False
    for loss in losses[1:]:
        is_above = not loss <= (1 + LEAP) * lowest
        leaps += is_above and not above
        lowest, above = min(lowest, loss), is_above
    tail = [loss for loss in losses[-max(1, len(losses) // 10) :] if math.isfinite(loss)]
    return {"training/leaps": leaps} | ({"training/loss": float(f"{fmean(tail):.6g}")} if tail else {})


# Results.


def result(claim_id: str, size: str, common: list[str], parts: Json, measured: Json | None = None) -> Json:
    """A result before it is merged into what is stored."""
    head = {"format": FORMAT, "id": claim_id, "size": size, "common": list(common)}
    return head | {"parts": parts, "measured": measured or {}, "provenance": []}


def origin(provenance: Json, command: str, runs: list[list[Any]], date: str) -> Json:
    """One entry of a result's provenance: device, versions, command, date, code; no path and no name of a machine.

    A commit is named only where nothing was changed since; the hash of the code always is.
    """
    keys = ("device", "python", "versions", *(() if provenance.get("git_dirty") else ("git_commit",)), "code")
    known = {key: provenance[key] for key in keys if key in provenance}
    return {"date": date, "command": command} | known | {"runs": runs}


def merge(old: Json, new: Json, where: str) -> Json:
    """Both together: runs by (side, seed), where the old one stays.

    Raises:
        InputError: they follow different plans; the message names the first field that differs.
    """
    for key in ("id", "size"):
        _same(old[key], new[key], key, where)
    _same(_settled(old["common"]), _settled(new["common"]), "common", where)
    parts = dict(old["parts"])
    for name, part in new["parts"].items():
        parts[name] = _merge_parts(parts[name], part, where) if name in parts else part
    together = {"parts": parts, "measured": old["measured"] | new["measured"]}
    return old | together | {"provenance": [*old["provenance"], *new["provenance"]]}


def _merge_parts(old: Json, new: Json, where: str) -> Json:
    for key in ("match", "metric"):
        _same(sorted(old[key]), sorted(new[key]), key, where)
    _same(old["data"]["data_hash"], new["data"]["data_hash"], "the text's data_hash", where)
    _same(old["sides"][0]["name"], new["sides"][0]["name"], "the first side", where)
    sides = {side["name"]: side for side in old["sides"]}
    for side in new["sides"]:
        known = sides.setdefault(side["name"], side)
        known |= {key: side[key] for key in ("lr", "certificate") if known[key] is None}  # stopped before it had any
        _same(_settled(known["assignments"]), _settled(side["assignments"]), f"assignments of {side['name']}", where)
        for key in ("recipe", "changes", "seed_offset", "lr"):
            if key == "lr" and side[key] is None:
                continue
            _same(known[key], side[key], f"{key} of {side['name']}", where)
        _same(*_known_to_both(known["config"], side["config"]), f"config of {side['name']}", where)
    runs = {(run["side"], run["seed"]): run for run in [*new["runs"], *old["runs"]]}
    failed = {(run["side"], run["seed"]): run for run in [*old["failed"], *new["failed"]]}
    trials = sorted([*new["tuning"], *old["tuning"]], key=lambda trial: trial["val_bpb"] is not None)
    tuning = {(trial["side"], trial["lr"]): trial for trial in trials}
    refused = [*old["refused"], *(one for one in new["refused"] if one not in old["refused"])]
    return old | {
        "sides": list(sides.values()),
        "runs": _in_order(runs.values(), list(sides.values())),
        "failed": _in_order([one for key, one in failed.items() if key not in runs], list(sides.values())),
        "tuning": list(tuning.values()),
        "refused": refused,
        "baselines": old["baselines"] or new["baselines"],
        "factors": old["factors"] or new["factors"],
    }


def _settled(assignments: Sequence[str]) -> dict[str, str]:
    """Field → the last value that it is given: the order of assignments of different fields says nothing."""
    return {name.strip(): value for name, _, value in (word.partition("=") for word in assignments)}


def _in_order(runs: Iterable[Json], sides: list[Json]) -> list[Json]:
    """Side by side, seed by seed."""
    names = [side["name"] for side in sides]
    return sorted(runs, key=lambda run: (names.index(run["side"]), run["seed"]))


def _known_to_both(was: Json, now: Json) -> tuple[Json, Json]:
    """Both without the settings that only one of them has: a later program may have more."""
    both = [key for key in was if key in now]
    pairs = {
        key: _known_to_both(was[key], now[key])
        if isinstance(was[key], dict) and isinstance(now[key], dict)
        else (was[key], now[key])
        for key in both
    }
    return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}


def _same(was: Any, now: Any, field: str, where: str) -> None:
    """Refuse two values that differ, by the dotted name of the first difference."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            _same(was.get(key), now.get(key), f"{field}.{key}", where)
    elif was != now:
        raise InputError(
            f"{where}: {field} is {_short(was)} there and {_short(now)} here, so these are results of different "
            "plans; use the old value, or another --results"
        )


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


# Files.


def path_of(folder: Path, claim_id: str) -> Path:
    return folder / f"{claim_id}.json"


def write(folder: Path, stored: Json, finding: Finding) -> Path:
    """Write FOLDER/ID.json; the finding is for those who read the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, stored["id"])
    said: Json = {"verdict": finding.verdict, "reason": finding.reason, "difference": finding.difference}
    said |= {"low": finding.low, "high": finding.high, "n": finding.n, "unit": finding.unit}
    said |= {"figures": dict(finding.figures)}
    write_atomic(path, _text(stored | {"finding": said}, _LINES) + "\n")
    return path


def _text(value: Any, depth: int, indent: str = "") -> str:
    """JSON with one item a line down to a depth, so that what was added shows as lines that were added."""
    if not depth or not value or not isinstance(value, (dict, list)):
        return json.dumps(value, allow_nan=False)
    within = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_text(item, depth - 1, within)}" for key, item in value.items()]
    else:
        items = [_text(item, depth - 1, within) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{within}".join(items)
    return f"{opening}\n{within}{lines}\n{indent}{closing}"


def read(folder: Path | None, claim_id: str) -> Json | None:
    """The stored result of a claim; None where there is none. What the file says of its verdict is left out.

    Raises:
        InputError: the file is damaged, of another version, or of another claim.
    """
    if folder is None or not (path := path_of(folder, claim_id)).exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        _check(stored, claim_id)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: is damaged ({_line(error)}); restore it from a copy, or delete it") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: is damaged ({type(error).__name__}: {_line(error)}); restore it from a copy"
        ) from None
    stored.pop("finding", None)
    return stored


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _check(stored: Any, claim_id: str) -> None:
    """Raises ValueError, KeyError or TypeError where something is not as it was written."""
    _expect(isinstance(stored, dict) and stored["format"] == FORMAT, f"no result of format {FORMAT}")
    _expect(stored["id"] == claim_id, "it is the result of another claim")
    _expect(isinstance(stored["size"], str) and all(isinstance(word, str) for word in stored["common"]), "size, common")
    _expect(isinstance(stored["measured"], dict) and isinstance(stored["provenance"], list), "measured, provenance")
    texts = (one.get(key, "") for one in stored["provenance"] for key in ("device", "code"))
    _expect(all(isinstance(text, str) for text in texts), "provenance")
    for part in stored["parts"].values():
        names = [side["name"] for side in part["sides"]]
        _expect(bool(names) and len(set(names)) == len(names) and all(map(NAME.fullmatch, names)), "names of sides")
        _expect(all(isinstance(one, str) for one in (part["data"]["data_hash"], *part["match"])), "data, match")
        for side in part["sides"]:
            _check_side(side)
        for run in part["runs"]:
            _check_run(run, names)
        for one in part["failed"]:
            _expect(one["side"] in names and isinstance(one["seed"], int) and isinstance(one["state"], str), "failed")
        for model in part["baselines"]:
            _expect(_is_number(model[COLUMN]), "baselines")
        for key in ("tuning", "refused", "factors"):
            _expect(isinstance(part[key], list), key)


def _check_side(side: Json) -> None:
    config, certificate = side["config"], side["certificate"]
    sizes = (config["steps"], config["batch_tokens"], config["model"]["max_seq_len"])
    _expect(all(isinstance(size, int) and size > 0 for size in sizes), f"config of {side['name']}")
    _expect(side["budget"]["non_embedding_parameters"] > 0, f"budget of {side['name']}")
    _expect(all(map(_is_number, side["ratios"].values())), f"ratios of {side['name']}")
    _expect(side["lr"] is None or _is_number(side["lr"]), f"lr of {side['name']}")
    _expect(certificate is None or all(isinstance(one, str) for one in certificate["failed"]), "certificate")
    _expect(all(isinstance(word, str) for word in (side["recipe"], *side["assignments"])), "assignments")


def _check_run(run: Json, names: list[str]) -> None:
    what = f"run {run['seed']} of {run['side']}"
    _expect(run["side"] in names and type(run["seed"]) is int and run["seed"] >= 0, what)
    curves = [run[key] for key in ("tokens", "val_loss", COLUMN)]
    _expect(len(curves[0]) > 0 and len({len(curve) for curve in curves}) == 1, f"curves of {what}")
    _expect(all(_is_number(value) and value > 0 for curve in curves for value in curve), f"curves of {what}")
    _expect(all(map(_is_number, run["statistics"].values())), f"statistics of {what}")
    taken = run.get("taken", {"id": "", "device": ""})
    _expect(all(isinstance(taken[key], str) for key in ("id", "device")), f"taken of {what}")
    _expect(isinstance(run.get("key", ""), str), f"key of {what}")
    _expect(isinstance(run["stream"], str) and isinstance(run["data_hash"], str), f"stream of {what}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is not as it was written")


def evidence_of(stored: Json) -> Evidence:
    """What a rule may look at."""
    parts = {name: Part(part) for name, part in stored["parts"].items()}
    return Evidence(parts, stored["measured"], stored["size"])
