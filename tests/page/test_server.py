"""What the server shows, and to whom."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from homunculi.runs.directory import RunDirectory
from homunculi.web import guard
from homunculi.web.server import Page
from tests.page.conftest import PORT
from tests.page.runs_made import made_run


def states(client: Any) -> dict[str, str]:
    return {run["key"]: run["state"] for run in client.get("/api/runs").json()["runs"]}


def test_every_run_is_listed_with_the_state_it_has(client: Any) -> None:
    found = states(client)
    assert len(found) == 11
    assert {found[f"plain-{seed}"] for seed in range(3)} == {"done"}
    expected = {
        "going": "running",
        "no-space": "failed",
        "too-fast": "diverged",
        "lost": "crashed",
        "half": "unreadable",
    }
    assert {key: found[key] for key in expected} == expected


def test_the_list_follows_a_run_that_is_written_and_ages_one_that_falls_silent(client: Any, project: Path) -> None:
    run = RunDirectory(project / "going")
    run.write_status(step=230)
    assert next(run for run in client.get("/api/runs").json()["runs"] if run["key"] == "going")["step"] == 230
    status = json.loads((project / "going/status.json").read_text())
    (project / "going/status.json").write_text(json.dumps(status | {"time": 1.0}))
    assert states(client)["going"] == "crashed"


def test_groups_are_of_runs_equal_in_everything_but_the_seed(client: Any) -> None:
    groups: dict[str, set[str]] = {}
    for run in client.get("/api/runs").json()["runs"]:
        groups.setdefault(run["group"], set()).add(run["key"])
    assert {"modulated-0", "modulated-1", "modulated-2"} in groups.values()
    assert {"plain-0", "plain-1", "plain-2", "no-space", "lost"} in groups.values()
    assert {"too-fast"} in groups.values() and {"half"} in groups.values()


def test_a_torn_line_and_a_broken_file_are_said(client: Any, project: Path) -> None:
    lost = client.get("/api/run", params={"run": "lost"}).json()
    assert lost["state"] == "crashed" and "stopped without a word" in lost["situation"]
    assert lost["notes"] == ["metrics.jsonl: the last line breaks off in its middle and is left out"]
    half = client.get("/api/run", params={"run": "half"}).json()
    assert half["state"] == "unreadable" and "run.json cannot be used" in half["notes"][0]
    with open(project / "plain-0/metrics.jsonl", "a") as file:
        file.write("{broken\n")
    assert client.get("/api/run", params={"run": "plain-0"}).json()["notes"] == [
        "metrics.jsonl: 1 damaged line is left out"
    ]


def test_curves_are_what_was_logged(client: Any, project: Path) -> None:
    asked = {"run": "plain-1", "metric": ["val/loss", "lr", "unheard of"]}
    lines = client.get("/api/curves", params=asked).json()["lines"]
    assert set(lines) == {"val/loss", "lr"}
    logged = [line["val/loss"] for line in RunDirectory(project / "plain-1").metrics() if "val/loss" in line]
    assert lines["val/loss"]["y"] == pytest.approx(logged, rel=1e-6)
    assert lines["val/loss"]["x"] == [50.0 * (index + 1) for index in range(8)]
    over = client.get("/api/curves", params=asked | {"axis": "tokens"}).json()["lines"]["val/loss"]
    assert over["x"] == [50 * 2048.0 * (index + 1) for index in range(8)]
    assert over["y"] == lines["val/loss"]["y"]


def test_values_that_were_not_finite_break_the_line_and_are_named(client: Any, project: Path) -> None:
    run = made_run(project / "broken", steps=400, step=100)
    run.log_metrics({"step": 105, "train/loss": math.nan})
    line = client.get("/api/curves", params={"run": "broken", "metric": "train/loss"}).json()["lines"]["train/loss"]
    assert line["x"][-1] == 105 and line["y"][-1] is None
    assert client.get("/api/run", params={"run": "broken"}).json()["nonfinite"] == [[105, "train/loss"]]


def test_means_and_bands_are_over_seeds(client: Any) -> None:
    runs = ["plain-0", "plain-1", "plain-2", "modulated-0"]
    found = client.get("/api/compare", params={"run": runs, "metric": "val/loss"}).json()
    plain, modulated = found["groups"]
    assert (plain["name"], plain["n"], modulated["name"], modulated["n"]) == ("plain", 3, "modulated-0", 1)
    ends = [run["end"] for run in plain["runs"]]
    assert plain["mean"] == pytest.approx(sum(ends) / 3) and (plain["low"], plain["high"]) == (min(ends), max(ends))
    assert plain["line"]["low"][-1] == pytest.approx(min(ends), rel=1e-6)
    assert plain["line"]["mean"][-1] == pytest.approx(sum(ends) / 3, rel=1e-6)
    assert [row["name"] for row in found["varying"]["rows"]] == ["config.model.architecture", "config.model.n_passes"]


def test_measurements_come_in_all_four_views(client: Any) -> None:
    found = client.get("/api/instruments", params={"run": "modulated-0"}).json()["instruments"]
    assert {one["view"] for one in found} == {"line", "heatmap", "table", "text"}
    assert all(one["steps"] == list(range(0, 401, 50)) for one in found)
    asked = {"run": "modulated-0", "instrument": "blocks", "step": 400}
    (figure,) = client.get("/api/measurement", params=asked).json()["figures"]
    assert figure["shape"] == [2, 4, 6] and figure["values"][0][0][0] is None
    assert figure["labels"][0] == ["attention", "mlp"] and figure["labels"][2] is None
    lines = client.get("/api/scalars", params={"run": "modulated-0", "instrument": "depths"}).json()["lines"]
    assert lines["mean depth"]["x"] == list(range(0, 401, 50)) and lines["mean depth"]["y"][0] == 1.0
    assert client.get("/api/measurement", params=asked | {"step": 7}).status_code == 400
    assert client.get("/api/measurement", params=asked | {"instrument": "../x"}).status_code == 404


@pytest.mark.parametrize(
    "key", ["../outside", "..", "plain-0/../../outside", "/etc", "plain-0/", "", "a\\b", "x" * 2000]
)
def test_keys_that_leave_the_folder_name_no_run(client: Any, project: Path, key: str, token: dict[str, str]) -> None:
    made_run(project.parent / "outside", step=5)
    more = {"name": "run.json", "metric": "lr", "instrument": "blocks", "step": "0"}
    reads = ("run", "curves", "samples", "events", "instruments", "measurement", "scalars", "compare", "file")
    for route in reads:
        answer = client.get(f"/api/{route}", params={"run": key, **more})
        assert answer.status_code in (400, 404) and set(answer.json()) == {"error"}, route
    assert client.post("/api/scan", json={"run": key, "text": "a"}, headers=token).status_code in (400, 404)


def test_links_that_lead_out_are_not_followed(client: Any, project: Path) -> None:
    outside = project.parent / "outside"
    made_run(outside, step=400)
    (project / "link").symlink_to(outside)
    (project / "plain-0/samples.jsonl").unlink()
    (project / "plain-0/samples.jsonl").symlink_to(outside / "samples.jsonl")
    (project / "plain-1/metrics.jsonl").unlink()
    (project / "plain-1/metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    (project / "plain-2/measures").symlink_to(outside)
    assert not {"link", "plain-1"} & set(states(client))
    assert client.get("/api/run", params={"run": "link"}).status_code == 404
    assert client.get("/api/samples", params={"run": "plain-0"}).status_code == 404
    assert client.get("/api/file", params={"run": "plain-0", "name": "samples.jsonl"}).status_code == 404
    assert client.get("/api/curves", params={"run": "plain-1", "metric": "lr"}).status_code == 404
    assert client.get("/api/instruments", params={"run": "plain-2"}).status_code == 404


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-5", "checkpoints/step-5/a", "tokenizer.json"])
def test_a_model_that_lies_outside_is_not_loaded(
    client: Any, project: Path, token: dict[str, str], page: Page, place: str
) -> None:
    link = project / "plain-0" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(project.parent)
    answer = client.post("/api/scan", json={"run": "plain-0", "text": "a"}, headers=token)
    assert answer.status_code == 404 and page.desk._process is None


def test_a_link_inside_the_folder_is_a_run(client: Any, project: Path) -> None:
    (project / "again").symlink_to(project / "plain-0")
    assert states(client)["again"] == "done"


@pytest.mark.parametrize("name", ["checkpoints", "../plain-1/run.json", "/etc/passwd", "secret.txt"])
def test_only_files_of_a_run_are_given(client: Any, project: Path, name: str) -> None:
    (project / "plain-0/secret.txt").write_text("mine")
    assert client.get("/api/file", params={"run": "plain-0", "name": name}).status_code == 404


def test_a_report_is_shown_without_any_right(client: Any, project: Path) -> None:
    (project / "plain-0/report.html").write_text("<script>alert(1)</script>")
    answer = client.get("/api/file", params={"run": "plain-0", "name": "report.html"})
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    lines = client.get("/api/file", params={"run": "plain-0", "name": "metrics.jsonl"})
    assert lines.headers["content-type"].startswith("text/plain") and lines.text.startswith('{"step":5')


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}", "", "0.0.0.0"]
)
def test_foreign_hosts_are_refused(client: Any, host: str) -> None:
    for path in ("/", "/api/runs", "/static/main.js"):
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"])
def test_foreign_origins_are_refused_even_with_the_token(client: Any, token: dict[str, str], origin: str) -> None:
    asked = {"run": "plain-0", "text": "a"}
    assert client.post("/api/scan", json=asked, headers=token | {"Origin": origin}).status_code == 403
    assert client.get("/api/runs", headers={"Origin": origin}).status_code == 403
    assert (
        client.get("/api/runs", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code
        == 403
    )


def test_our_own_names_are_answered(client: Any) -> None:
    for name in ("127.0.0.1", "localhost"):
        headers = {"Host": f"{name}:{PORT}", "Origin": f"http://{name}:{PORT}"}
        assert client.get("/api/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("do", ["scan", "sample", "signals"])
def test_acting_needs_the_token(client: Any, page: Page, do: str) -> None:
    asked = {"run": "plain-0", "text": "One"}
    for headers in ({}, {"X-Homunculi-Token": "wrong"}, {"X-Homunculi-Token": page.token[:-1]}):
        assert client.post(f"/api/{do}", json=asked, headers=headers).status_code == 401
    assert client.get(f"/api/{do}").status_code == 405
    assert page.desk._process is None, "nothing was started for them"
    assert client.post(f"/api/{do}", json=asked, headers={"X-Homunculi-Token": page.token}).status_code == 200


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {guard.new_token() for _ in range(50)}
    assert len(tokens) == 50 and min(map(len, tokens)) >= 32
    assert not guard.may_act({"x-homunculi-token": "ü"}, "u") and not guard.may_act({}, "u")


def test_too_much_text_is_refused_with_the_limit(client: Any, token: dict[str, str]) -> None:
    asked = {"run": "plain-0", "text": "a" * (guard.TEXT_LIMIT + 1)}
    answer = client.post("/api/scan", json=asked, headers=token)
    assert answer.status_code == 400 and answer.json()["error"] == "text: 8,001 characters, at most 8,000 are taken"
    asked = {"run": "plain-0", "text": "One", "patch_text": "a" * (guard.TEXT_LIMIT + 1)}
    assert client.post("/api/scan", json=asked, headers=token).json()["error"].startswith("patch_text: 8,001 ")
    huge = client.post("/api/scan", json={"run": "plain-0", "text": "a" * guard.BODY_LIMIT}, headers=token)
    assert huge.status_code == 413 and "65,536" in huge.json()["error"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0),
        ("tokens", 1001),
        ("tokens", True),
        ("seed", -1),
        ("seed", 0.5),
        ("temperature", 6),
        ("temperature", "hot"),
        ("step", "last"),
        ("changes", "depth=2"),
        ("changes", ["a"] * 65),
        ("changes", ["a" * 301]),
        ("text", None),
        ("run", 3),
    ],
)
def test_fields_beyond_their_limits_are_named(client: Any, token: dict[str, str], field: str, value: Any) -> None:
    asked = {"run": "plain-0", "text": "One", field: value}
    answer = client.post("/api/sample", json=asked, headers=token)
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{field}:")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 30_000, b"\xff"])
def test_bodies_that_are_no_object_are_refused(client: Any, token: dict[str, str], body: bytes) -> None:
    assert client.post("/api/scan", content=body, headers=token).status_code == 400


def test_every_answer_carries_the_headers_of_safety(client: Any) -> None:
    for path in ("/", "/static/main.js", "/api/runs", "/api/run?run=..", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        policy = [part.split() for part in headers["content-security-policy"].split(";")]
        assert ["script-src", "'self'"] in policy and ["style-src", "'self'"] in policy
        assert not [part for part in policy if "'unsafe-inline'" in part]


def test_static_files_are_named_one_by_one(client: Any) -> None:
    assert client.get("/static/vendor/plotly-cartesian.min.js").status_code == 200
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/", "/static/vendor", "/etc/passwd"):
        assert client.get(path).status_code == 404
    first = client.get("/static/main.js")
    assert client.get("/static/main.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_a_scan_and_a_text_come_from_the_desk(client: Any, token: dict[str, str]) -> None:
    asked = {"run": "plain-0", "text": "One morning", "step": 400, "changes": ["depth=2"]}
    (line,) = client.post("/api/scan", json=asked, headers=token).text.splitlines()
    scan = json.loads(line)["result"]
    assert [token["text"] for token in scan["tokens"]] == ["One", " morning"] and scan["changes"] == ["depth=2"]
    lines = [json.loads(line) for line in client.post("/api/sample", json=asked, headers=token).text.splitlines()]
    pieces = "".join(line["piece"] for line in lines[:-1])
    assert len(lines) == 13 and lines[-1]["result"]["text"] == pieces


def test_what_the_desk_cannot_do_is_one_line(client: Any, token: dict[str, str]) -> None:
    said = client.post("/api/scan", json={"run": "plain-0", "text": "fail"}, headers=token).text
    assert json.loads(said) == {"error": "the model is too small for this text"}
    said = client.post("/api/scan", json={"run": "plain-0", "text": "die"}, headers=token).text
    assert json.loads(said) == {"error": "the desk ended: no memory is left"}
    assert "result" in client.post("/api/scan", json={"run": "plain-0", "text": "One"}, headers=token).text


def test_claims_are_those_of_the_verb(client: Any) -> None:
    first, second = client.get("/api/claims").json()["claims"]
    assert (first["verdict"], second["verdict"]) == ("supported", "not run")


def test_names_that_no_text_can_hold_are_listed_and_not_fatal(client: Any, project: Path) -> None:
    made_run(project / "odd", step=5).write_info({"name": "\ud800 \x07 <script>", "architecture": ["no", "text"]})
    assert (
        next(run for run in client.get("/api/runs").json()["runs"] if run["key"] == "odd")["name"]
        == "\ud800 \x07 <script>"
    )
    assert client.get("/api/run", params={"run": "odd"}).status_code == 200


def test_numbers_in_a_run_that_json_does_not_have_are_left_blank(client: Any, project: Path) -> None:
    path = project / "plain-0/run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"budget": {"parameters": math.inf, "flops": [math.nan, 1.0]}}))
    head = client.get("/api/run", params={"run": "plain-0"})
    assert head.status_code == 200 and head.json()["parts"]["budget"]["parameters"] is None
    assert client.get("/api/compare", params={"run": "plain-0", "metric": "val/loss"}).status_code == 200
