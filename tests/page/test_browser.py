"""The page in a browser: every view opens, draws what there is, asks nobody else, and runs nothing that a file says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from homunculi.runs.directory import RunDirectory
from homunculi.runs.measures import Measurement, Stored, write_measurement
from homunculi.web.server import Page
from tests.page.runs_made import made_run, metrics_at

DRAWN = """() => [...document.querySelectorAll(".js-plotly-plot")].map((plot) => ({
  label: plot.getAttribute("aria-label"),
  traces: plot.data.map((one) => ({
    type: one.type,
    n: (one.z || [one.x]).flat().filter((value) => value !== null).length,
    last: one.x && one.x.at(-1),
    dash: one.line && one.line.dash,
    symbol: one.marker && one.marker.symbol,
  })),
  paths: [...plot.querySelectorAll(".scatterlayer path.js-line")].filter((one) => one.getAttribute("d")).length,
  images: [...plot.querySelectorAll(".heatmaplayer image")].filter((one) => one.href.baseVal).length,
}))"""
LINKS = (
    """() => [...document.querySelectorAll("figure a.data, .panel a.data")].map((one) => one.getAttribute("href"))"""
)
HARMED = "window.hacked !== undefined || document.images.length > 0 || document.scripts.length !== 2"
COUNTED = """(count) => {
  const panels = document.querySelectorAll(".panel");
  window.looked = (window.looked || 0) + 1;
  if (panels.length) panels[window.looked % panels.length].scrollIntoView();
  return document.querySelectorAll(".js-plotly-plot .plot-container").length >= count;
}"""
SEEDS = [f"run=plain-{seed}" for seed in range(3)] + [f"run=modulated-{seed}" for seed in range(3)]


class Tab:
    """A browser tab that remembers what went wrong and whom it asked."""

    def __init__(self, tab: Any, page: Page) -> None:
        self.tab, self.page = tab, page
        self.wrong: list[str] = []
        self.asked: list[str] = []
        tab.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        tab.on("request", lambda request: self.asked.append(request.url))

    def open(self, view: str = "", *, token: bool = True) -> None:
        """Open the printed address, or a view of it in a tab that has the token (or has not)."""
        if view and token:
            kept = f"sessionStorage.setItem('homunculi-token', '{self.page.token}')"
            self.tab.add_init_script(f"if (location.port) {kept}")
        self.tab.goto("about:blank")
        self.tab.goto(f"http://127.0.0.1:{self.page.port}/#/{view}" if view else self.page.address)
        self.tab.wait_for_selector("main[data-ready]")

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """The figures, once there are `count` of them and all hold something."""
        self.tab.wait_for_function(COUNTED, arg=count)
        figures: list[dict[str, Any]] = self.tab.evaluate(DRAWN)
        assert len(figures) >= count
        for figure in figures:
            assert figure["paths"] or figure["images"], figure
            assert figure["label"] and all(trace["n"] for trace in figure["traces"]), figure
        return figures

    def text(self, selector: str = "main") -> str:
        return str(self.tab.inner_text(selector))


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 900})
    made.set_default_timeout(15_000)
    yield made
    made.close()


@pytest.fixture
def tab(context: Any, served: Page) -> Iterator[Tab]:
    RunDirectory(served.project.root / "going").write_status()  # a fresh heartbeat
    made = Tab(context.new_page(), served)
    yield made
    made.tab.close()
    ours = (f"http://127.0.0.1:{served.port}/", "data:", f"blob:http://127.0.0.1:{served.port}/")
    assert made.asked and not [url for url in made.asked if not url.startswith(ours)]
    assert not made.wrong


def test_the_list_sorts_and_filters_and_leads_to_a_comparison(tab: Tab) -> None:
    tab.open()
    names = "[...document.querySelectorAll('.runs tbody tr')].map((row) => row.querySelector('a').innerText)"
    assert len(tab.tab.evaluate(names)) >= 11
    for state in ("running", "done", "failed", "diverged", "crashed", "unreadable"):
        assert state in tab.text(".runs")
    tab.tab.click("button[data-key=val_bpb]")
    tab.tab.click("button[data-key=val_bpb]")
    assert tab.tab.evaluate(names)[0] == "modulated-0"
    assert tab.tab.get_attribute("th:has(button[data-key=val_bpb])", "aria-sort") == "ascending"
    tab.tab.fill("input[type=search]", "plain-")
    assert tab.tab.evaluate(names) == ["plain-0", "plain-1", "plain-2"]
    tab.tab.check("input[aria-label='choose plain-0']")
    tab.tab.click("text=with other seeds")
    tab.tab.click("a.button:has-text('Compare')")
    tab.tab.wait_for_selector("main[data-ready=compare]")
    assert "run=plain-2" in tab.tab.url


def test_the_list_can_be_used_by_keyboard(tab: Tab) -> None:
    tab.open()
    tab.tab.keyboard.press("Tab")
    assert tab.tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        tab.tab.keyboard.press("Tab")
        if tab.tab.evaluate("document.activeElement.dataset.focus || ''") == "link plain-2":
            break
        assert tab.tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    else:
        tab.tab.focus("a[data-focus='link plain-2']")
    tab.tab.keyboard.press("Enter")
    tab.tab.wait_for_selector("main[data-ready=run]")
    assert tab.text("h1") == "plain-2"


def test_a_run_shows_curves_samples_and_every_instrument(tab: Tab) -> None:
    tab.open("run?run=modulated-1")
    figures = tab.drawn(9)
    loss = next(one for one in figures if one["label"].startswith("Loss."))
    assert [trace["n"] for trace in loss["traces"]] == [80, 8]
    assert len({trace["dash"] for trace in loss["traces"]}) == len({trace["symbol"] for trace in loss["traces"]}) == 2
    assert {"line", "heatmap", "table", "text"} == set(
        tab.tab.evaluate("[...document.querySelectorAll('.panel')].map((one) => one.dataset.view)")
    )
    assert "One morning, Mina found a red box" in tab.text("#samples")
    links = tab.tab.evaluate(LINKS)
    assert len(links) >= 9 and all(tab.tab.request.get(f"http://127.0.0.1:{tab.page.port}{link}").ok for link in links)


def test_rows_that_have_nothing_in_common_are_shaded_each_by_itself(tab: Tab) -> None:
    tab.open("run?run=modulated-1")
    tab.drawn(9)
    plots = "[...document.querySelectorAll('.panel[data-instrument=blocks] .js-plotly-plot')].map((one) => one.data[0])"
    for trace in tab.tab.evaluate(plots):
        assert (trace["zmin"], trace["zmax"]) == (0, 1) and trace["customdata"] != trace["z"]
        for shades in trace["z"]:
            known = [shade for shade in shades if shade is not None]
            assert min(known) == 0 and max(known) == 1


def test_the_sliders_move_through_training(tab: Tab) -> None:
    tab.open("run?run=modulated-1")
    tab.drawn(9)
    cell = ".panel[data-instrument=balance] tbody tr:first-child td:nth-child(3)"
    assert tab.text(cell) == "0.5"
    tab.tab.locator(".panel[data-instrument=depths] input[type=range]").fill("0")
    tab.tab.wait_for_function(f"() => document.querySelector('{cell}').innerText === '0.25'")
    assert "step 0" in tab.text(".panel[data-instrument=surprise] output")
    tab.tab.locator("#samples input[type=range]").fill("0")
    assert "the the a the" in tab.text("#samples .said")


def test_a_run_is_followed_while_it_writes(tab: Tab) -> None:
    run = made_run(tab.page.project.root / "live", architecture="modulated", seed=9, state="running", step=100)
    tab.open("run?run=live")
    tab.drawn(5)
    for step in range(105, 131, 5):
        run.log_metrics(metrics_at(step, 400, 9, 1.0) | ({"model/new": 1.0} if step > 120 else {}))
    run.log_sample({"step": 130, "prompt": "", "text": "something quite new", "temperature": 0.8, "seed": 0})
    run.write_status(step=130, tokens=130 * 2048)
    tab.tab.wait_for_function(
        "() => document.querySelector('.js-plotly-plot')?.data[0].x.at(-1) === 130", timeout=10_000
    )
    tab.tab.wait_for_function("() => document.querySelector('#samples').innerText.includes('quite new')")
    assert "130 of 400" in tab.text("#state") and "model: 3 more" in tab.text("#curves")
    run.write_status(state="done", step=130)
    tab.tab.wait_for_selector("#state .state-done")
    run.close()


def test_the_last_of_very_many_samples_are_followed(tab: Tab) -> None:
    run = made_run(tab.page.project.root / "talking", architecture="modulated", seed=8, state="running", step=100)
    for step in range(500):
        run.log_sample({"step": step, "prompt": "", "text": f"number {step}", "temperature": 0.8, "seed": 0})
    tab.open("run?run=talking")
    tab.tab.wait_for_function("() => document.querySelector('#samples .said').innerText.includes('number 499')")
    run.log_sample({"step": 500, "prompt": "", "text": "number 500", "temperature": 0.8, "seed": 0})
    run.write_status(step=101)
    tab.tab.wait_for_function("() => document.querySelector('#samples .said').innerText.includes('number 500')")
    run.close()


def test_runs_that_went_wrong_say_so(tab: Tab) -> None:
    expected = {
        "lost": ("crashed", "stopped without a word", "the last line breaks off"),
        "half": ("unreadable", "run.json cannot be used"),
        "no-space": ("failed", "the disk is full"),
    }
    for key, words in expected.items():
        tab.open(f"run?run={key}")
        assert not [word for word in words if word not in tab.text()], key


def test_groups_are_compared_with_means_and_bands(tab: Tab) -> None:
    tab.open(f"compare?{'&'.join(SEEDS)}&run=going")
    (figure,) = tab.drawn(1)
    assert len(figure["traces"]) == 7, "two groups with a line and two edges each, and a run alone"
    assert "plain (n = 3)" in tab.text(".js-plotly-plot") or "plain (n = 3)" in tab.tab.content()
    assert "config.model.n_passes" in tab.text() and "Not all runs have come equally far" in tab.text()
    tab.tab.select_option("select >> nth=0", "train/loss")
    tab.tab.wait_for_function("() => document.querySelector('.js-plotly-plot').data.some((one) => one.x.length === 80)")


def test_a_typed_text_is_scanned(tab: Tab) -> None:
    tab.open("scan?run=modulated-0")
    tab.tab.fill("textarea", "One <b>bold</b> morning")
    tab.tab.click("button.primary")
    tab.tab.wait_for_selector("#found .plot-container")
    figures = tab.drawn(3)
    assert {trace["type"] for one in figures for trace in one["traces"]} == {"heatmap"}
    assert "␣<b>bold</b>" in tab.text("#found .marked") and "1 neutral" in tab.tab.content()
    tab.tab.select_option("#found .field:has-text('After token') select", "1")
    moved = tab.text("#found .moves")
    assert "after ␣<b>bold</b>; then came ␣morning" in moved
    assert "␣morning +20" in moved and "␣<b>up</b> +5.0" in moved and "␣<b>bold</b> −40" in moved
    assert tab.tab.locator("#found .moves .up.came").count() == 3
    first = tab.tab.get_attribute("#found a.data", "href")
    tab.tab.evaluate("window.gone = []; URL.revokeObjectURL = (url) => window.gone.push(url)")
    tab.tab.fill("textarea", "Two")
    tab.tab.click("button.primary")
    tab.tab.wait_for_function("(old) => document.querySelector('#found a.data')?.href !== old", arg=first)
    assert first in tab.tab.evaluate("window.gone"), "numbers of an earlier scan are let go"


def test_a_scan_is_stopped_by_its_button_by_another_and_by_leaving(tab: Tab) -> None:
    tab.open("scan?run=modulated-0")
    process = tab.page.desk._process
    for end in ("Stop", "another", "leave", "close"):
        tab.tab.fill("textarea", "endless")
        tab.tab.click("button.primary")
        tab.tab.wait_for_selector("text=Scanning")
        if end == "Stop":
            tab.tab.click("button:has-text('Stop')")
            tab.tab.wait_for_selector("text=Stopped.")
        elif end == "leave":
            tab.open("claims")
            tab.open("scan?run=modulated-0")
        elif end == "close":
            other = tab.tab.context.new_page()
            tab.tab.close()
            tab.tab = other
            tab.open("scan?run=modulated-0")
        tab.tab.fill("textarea", f"One {end}")
        tab.tab.click("button.primary")
        tab.tab.wait_for_selector("text=2 tokens at step 400.")
        assert tab.tab.is_disabled("button:has-text('Stop')")
        assert process is None or tab.page.desk._process is process, "the desk keeps its models"
        process = tab.page.desk._process


def test_scans_share_their_colours_on_request_and_take_signals_from_another_text(tab: Tab) -> None:
    ends = "[document.querySelector('#found .js-plotly-plot').data[0]].flatMap((one) => [one.zmin, one.zmax])"
    tab.open("scan?run=modulated-0")

    def scanned(text: str) -> list[float]:
        tab.tab.fill("textarea", text)
        tab.tab.click("button.primary")
        tab.tab.wait_for_selector(f"#found .marked:has-text('{text.split()[0]}')")
        tab.drawn(3)
        found: list[float] = tab.tab.evaluate(ends)
        return found

    assert scanned("One fish") == [0, 2]
    tab.tab.click("text=change the model first")
    tab.tab.fill("input[placeholder^=none]", "control.gain=patched")
    tab.tab.fill("textarea >> nth=1", "Ten boxes")
    assert scanned("Two frogs") == [0, 1]
    assert "patched from Ten boxes" in tab.text("#found") and "Changed: control.gain=patched" in tab.text("#found")
    tab.tab.check("text=keep the colours")
    tab.tab.fill("input[placeholder^=none]", "")
    tab.tab.select_option("select >> nth=0", "plain-0")
    assert scanned("Six birds") == [0, 1], "those of the scan before, of another run"
    links = tab.tab.evaluate(
        "[...document.querySelectorAll('#found figure')].map((one) => !!one.querySelector('a.data'))"
    )
    assert len(links) == 3 and all(links), "each figure leads to its numbers"


def test_two_runs_write_side_by_side(tab: Tab) -> None:
    tab.open("write?run=modulated-0&run=plain-0")
    tab.tab.click("button.primary")
    tab.tab.wait_for_selector("text=Done.")
    left, right = (tab.tab.locator(".written").nth(place).inner_text() for place in (0, 1))
    assert left.startswith("One morning") and left == right and "frog" in left


def test_changes_write_the_text_anew_and_only_the_last_one_counts(tab: Tab) -> None:
    tab.open("change?run=modulated-0")
    tab.tab.wait_for_selector("text=Both texts are the same.")
    for value in ("0.2", "0.6", "1.4"):
        tab.tab.locator(".knob input[type=range]").first.fill(value)
    tab.tab.wait_for_selector(".written ins")
    assert "control.gain=neutral:1.4" in tab.text()
    asked = [url for url in tab.asked if url.endswith("/api/sample")]
    assert len(asked) == 2, "the unchanged text, and the last of three changes"
    tab.tab.select_option(".knob >> nth=2 >> select", "silenced")
    tab.tab.select_option(".knob >> nth=3 >> select", "2")
    wanted = "control.gain=neutral:1.4 prefrontal=silenced depth=2"
    tab.tab.wait_for_function("(wanted) => document.body.innerText.includes(wanted)", arg=wanted)


def test_the_desk_s_failure_is_told(tab: Tab) -> None:
    tab.open("scan?run=modulated-0")
    tab.tab.fill("textarea", "fail")
    tab.tab.click("button.primary")
    assert "the model is too small for this text" in tab.text("#found [role=alert]")


def test_claims_have_their_verdicts(tab: Tab) -> None:
    tab.open("claims")
    assert "supported" in tab.text() and "<b>more</b>" in tab.text()
    tab.tab.select_option("select", "not run")
    assert "less is more" not in tab.text("table")


def test_without_the_token_the_page_only_reads(tab: Tab) -> None:
    tab.open("scan?run=modulated-0", token=False)
    assert "This tab only reads" in tab.text() and tab.tab.is_disabled("button.primary")
    tab.open("compare?run=plain-0", token=False)
    tab.drawn(1)
    assert not [url for url in tab.asked if tab.page.token in url or "token=" in url]


def test_what_files_say_is_text_and_nothing_else(tab: Tab) -> None:
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    run = made_run(tab.page.project.root / "evil", step=20, steps=400)
    run.write_info({"name": evil, "architecture": evil, "recipe": evil, "data": {"spec": f"</bdi>{evil}"}})
    run.log_metrics({"step": 25, evil: 1.0, "train/loss": 1.0})
    run.log_sample({"step": 25, "prompt": evil, "text": evil + "\u202egnp.exe", "temperature": 0.8, "seed": 0})
    run.log_event(evil, words=evil)
    run.write_status(state="failed", reason=evil)
    values = {"a": np.arange(4.0).reshape(2, 2)}
    labels = {"row": (evil, "b"), "column": (evil, "javascript:1")}
    for view in ("line", "heatmap", "table", "text"):
        link = '<a href="https://example.org">axis</a>'
        found = Measurement(values, {"a": ("row", link)}, labels, {"a": evil + link}, (evil,))
        write_measurement(run.path, Stored(f"v_{view}", view, evil, evil, 5, 10, found))
    run.close()
    tab.open("run?run=evil")
    tab.drawn(4)
    for part in tab.tab.query_selector_all("details:not([open]) > summary"):
        part.click()
    tab.tab.wait_for_timeout(200)
    plot = tab.tab.query_selector(".js-plotly-plot .main-svg")
    assert plot and plot.evaluate("(one) => getComputedStyle(one).position") == "absolute", (
        "the charts have their rules"
    )
    titles = tab.tab.eval_on_selector_all("svg .xtitle", "all => all.map((one) => one.textContent)")
    assert any("<a href" in title for title in titles)
    assert not tab.tab.query_selector("svg a"), "a name of an axis is no link"
    for view in ("", "compare?run=evil&run=plain-0", "scan?run=evil", "change?run=evil"):
        tab.open(view)
        assert "onerror" in tab.tab.inner_text("body"), view
    tab.open("run?run=evil")
    assert tab.text("h1") == evil and "⟨202e⟩gnp.exe" in tab.text("#samples")
    assert not tab.tab.evaluate(HARMED)


def test_dark_and_light_are_drawn_in_their_own_colours(tab: Tab) -> None:
    tab.open("compare?run=plain-0")
    tab.drawn(1)
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('.js-plotly-plot').data[0].line.color"
    light = tab.tab.evaluate(f"[{ground}, {line}]")
    tab.tab.emulate_media(color_scheme="dark")
    tab.tab.wait_for_timeout(200)
    dark = tab.tab.evaluate(f"[{ground}, {line}]")
    assert light[0] != dark[0] and light[1] != dark[1]


def test_many_runs_and_long_curves_open(tab: Tab) -> None:
    root = tab.page.project.root / "many"
    first = made_run(root / "run-0", steps=10_000, step=0)
    lines = "".join(json.dumps(metrics_at(step, 10_000, 0, 1.0)) + "\n" for step in range(1, 10_001))
    (first.path / "metrics.jsonl").write_text(lines)
    for seed in range(1, 60):
        made_run(root / f"run-{seed}", seed=seed, step=5)
    began = time.perf_counter()
    tab.open("run?run=many/run-0")
    figures = tab.drawn(5)
    assert max(trace["n"] for one in figures for trace in one["traces"]) <= 500
    assert figures[0]["traces"][0]["last"] == 10_000
    assert time.perf_counter() - began < 30, "a browser that hangs"
