// One run: how it stands, its curves as they are written, what it said, what was measured inside.

import {dataOf, read, repeat, viewOf} from "./api.js";
import {alertOf, checkbox, el, fill, folded, labelled, named, select, table} from "./dom.js";
import {chartsReady, frame, lines} from "./figures.js";
import {brief, exact, moment} from "./numbers.js";
import {panels} from "./panels.js";
import {samples} from "./samples.js";
import {badge, progress} from "./states.js";

const AXES = {step: "steps", tokens: "tokens", seconds: "seconds"};
// The vertical axis of losses is fitted to what follows this share of the steps so far.
const FOCUS = 0.05;
const FIGURES = [
  {title: "Loss", unit: "nats per token", metrics: ["train/loss", "val/loss"], scaled: true},
  {title: "Validation, bits per byte", unit: "bits/byte", metrics: ["val/bpb"], scaled: true},
  {title: "Gradient norm", unit: "", metrics: ["train/grad_norm"]},
  {title: "Learning rate", unit: "", metrics: ["lr"]},
  {title: "Speed", unit: "tokens/s", metrics: ["perf/tokens_per_s"]},
];
const OWN = new Set([...FIGURES.flatMap((one) => one.metrics), "tokens", "seconds", "flops"]);

export async function show(main, query, signal, about) {
  const key = query.get("run") || "";
  chartsReady().catch(() => {});  // come while the server reads; a figure says if they cannot
  const head = await read("run", {run: key}, signal);
  document.title = `${head.name} · homunculi`;
  const top = el("div", {});
  const shown = {key, axis: "step", log: false, figures: new Map(), open: new Set(), state: head.state};
  const curves = el("section", {id: "curves", "aria-labelledby": "curves-title"});
  const said = el("section", {id: "samples"}), inside = el("section", {id: "inside"});
  fill(main, top, curves, said, inside, settings(head), await happened(key, signal));
  drawTop(top, head, about);
  drawCurves(curves, head, shown, signal);
  await refreshCurves(shown, signal);  // before the panels: they take longer to draw, and stand further down
  const talk = await samples(said, key, signal);
  const look = await panels(inside, key, signal);
  const refresh = async () => {
    const now = await read("run", {run: key}, signal);
    if (now.version === shown.version && now.state === shown.state && now.step === shown.step) return;
    const known = new Set(head.metrics);
    shown.version = now.version;
    [shown.state, shown.step] = [now.state, now.step];
    drawTop(top, now, about);
    if (now.metrics.some((name) => !known.has(name))) {
      head.metrics = now.metrics;
      drawCurves(curves, now, shown, signal);
    }
    await refreshCurves(shown, signal);
    await talk.refresh();
    await look.refresh();
  };
  repeat(refresh, () => (shown.state === "running" || shown.state === "preparing" ? 1000 : 5000), signal);
}

function drawTop(top, head, about) {
  const to = (view, words) => el("a", {class: "button", href: viewOf(view, {run: head.key})}, words);
  const facts = [["parameters", brief(Number(head.parts.budget?.parameters ?? NaN))], ["tokens read", brief(head.tokens)],
    ["corpus", String(head.parts.data?.spec ?? "–")], ["device", String(head.parts.provenance?.device ?? "–")],
    ["started", moment(head.created)]];
  fill(top,
    el("p", {class: "kicker"}, el("a", {href: "#/"}, "Runs"), " / ", named(head.key)),
    el("h1", {}, named(head.name)),
    el("p", {class: "under", id: "state"}, badge(head.state), " ", progress(head.step, head.steps), " ",
      head.situation && el("span", {}, `· ${head.situation}`)),
    head.notes.map(alertOf),
    head.nonfinite.length > 0 && alertOf(`Not finite: ${head.nonfinite.slice(0, 5).map(([step, name]) => `${name} at step ${step}`).join(", ")}`),
    el("dl", {class: "facts"}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, named(value))))),
    el("nav", {class: "bar", "aria-label": "this run"}, to("scan", "Scan a text"), to("write", "Let it write"),
      to("change", "Change it"), to("compare", "Compare"),
      head.files.includes("report.html") && el("a", {href: dataOf("file", {run: head.key, name: "report.html"}), target: "_blank", rel: "noopener"}, "report")));
}

// Figures that are there already stay as they are: new metrics only add to them.
function drawCurves(section, head, shown, signal) {
  const again = () => refreshCurves(shown, signal);
  const axis = select(Object.entries(AXES), shown.axis, (one) => { shown.axis = one; again(); });
  const controls = el("div", {class: "controls"}, labelled("Over", axis),
    checkbox("losses by ratio (log scale)", shown.log, (on) => { shown.log = on; again(); }));
  const grid = el("div", {class: "grid"});
  for (const one of FIGURES) {
    const metrics = one.metrics.filter((name) => head.metrics.includes(name));
    if (metrics.length) grid.append(figureOf(shown, {...one, metrics}));
  }
  const groups = new Map();
  for (const name of head.metrics.filter((one) => !OWN.has(one))) {
    const stem = name.includes("/") ? name.split("/", 1)[0] : "others";
    groups.set(stem, [...(groups.get(stem) || []), name]);
  }
  const more = [...groups].map(([stem, names]) => folded(`${stem}: ${names.length} more`, () => {
    const inner = el("div", {class: "grid small"}, names.map((name) => figureOf(shown, {title: name, unit: "", metrics: [name]})));
    if (!shown.open.has(stem)) again();
    shown.open.add(stem);
    return inner;
  }, shown.open.has(stem)));
  const empty = !head.metrics.length && el("p", {class: "note"}, "Nothing logged yet.");
  const note = el("p", {class: "note"}, "The vertical axes of losses are fitted to what follows the first 5 %; a double click shows all. Dragging enlarges.");
  fill(section, el("h2", {id: "curves-title"}, "Curves"), controls, empty || note, grid, more);
}

function figureOf(shown, {title, unit, metrics, scaled = false}) {
  const made = shown.figures.get(title) || frame(title, {data: dataOf("curves", {run: shown.key, metric: metrics})});
  shown.figures.set(title, {...made, title, unit, metrics, scaled});
  return made.figure;
}

async function refreshCurves(shown, signal) {
  const wanted = [...new Set([...shown.figures.values()].flatMap((one) => one.metrics))];
  if (!wanted.length) return;
  const groups = [];
  for (let at = 0; at < wanted.length; at += 50) groups.push(wanted.slice(at, at + 50));
  const answers = await Promise.all(groups.map((metric) =>
    read("curves", {run: shown.key, metric, axis: shown.axis}, signal)));
  const found = Object.assign({}, ...answers.map((one) => one.lines));
  for (const one of shown.figures.values()) {
    const series = one.metrics.filter((name) => name in found).map((name) => ({
      name, x: found[name].x, y: found[name].y, look: one.metrics.indexOf(name),
      faint: name === "train/loss" && one.metrics.length > 1,
    }));
    one.link.href = dataOf("curves", {run: shown.key, metric: one.metrics, axis: shown.axis});
    await lines(one.plot, {title: one.title, series, xTitle: AXES[shown.axis], yTitle: one.unit,
      log: one.scaled && shown.log, focus: one.scaled ? FOCUS : 0});
  }
}

function settings(head) {
  const parts = Object.entries(head.parts).map(([part, values]) => folded(part, () =>
    table(["", "value"], Object.entries(values).map(([name, value]) => [named(name), named(typeof value === "string" ? value : JSON.stringify(value))]), part)));
  const files = el("ul", {class: "files"}, head.files.map((name) =>
    el("li", {}, el("a", {href: dataOf("file", {run: head.key, name}), target: "_blank", rel: "noopener"}, name))));
  return el("section", {}, el("h2", {}, "What was asked"), parts, el("h3", {}, "Files"), files);
}

async function happened(key, signal) {
  const {events} = await read("events", {run: key}, signal);
  if (!events.length) return null;
  const rows = events.map((one) => [moment(one.time), exact(one.step), named(one.kind), named(one.words)]);
  return el("section", {}, el("h2", {}, "What happened"),
    folded(`${events.length} events`, () => table(["time", "step", "what", ""], rows, "events")));
}

