// Instruments of a run: a panel each, with a slider over the steps at which it measured. Four views, no names known.

import {dataOf, read} from "./api.js";
import {alertOf, checkbox, el, fill, labelled, named, table} from "./dom.js";
import {frame, heatmap, lines, shade, thinTicks, visible} from "./figures.js";
import {exact, figure as short} from "./numbers.js";

const MOST_PANELS = 12, MOST_ROWS = 100;
// Panels are read and drawn when they come near the window.
const NEAR = "500px";
const OWN_SCALE = "measure";  // an axis of rows of this name holds quantities that have nothing in common

export async function panels(section, key, signal) {
  const all = {linked: true, panels: new Map()};
  const near = new IntersectionObserver((found) => found.filter((one) => one.isIntersecting).forEach(({target}) => {
    near.unobserve(target);
    all.panels.get(target.dataset.instrument).show();
  }), {rootMargin: NEAR});
  signal.addEventListener("abort", () => near.disconnect());
  const box = el("div", {class: "panels"});
  fill(section, el("h2", {}, "Inside"), el("p", {class: "note", role: "status"}, "Nothing was measured inside this run yet."));

  async function refresh() {
    const {instruments} = await read("instruments", {run: key}, signal);
    if (!instruments.length) return;
    if (!section.contains(box)) {
      fill(section, el("h2", {}, "Inside"),
        el("p", {class: "note"}, `${instruments.length} instruments, each at the steps of training at which it measured.`),
        el("div", {class: "controls"}, checkbox("move all sliders together", true, (on) => { all.linked = on; })), box);
    }
    for (const one of instruments) {
      if (!all.panels.has(one.name)) {
        const made = panel(key, one, all, signal);
        all.panels.set(one.name, made);
        box.append(made.article);
        near.observe(made.article);
      }
      await all.panels.get(one.name).update(one.steps);
    }
  }
  await refresh();
  return {refresh};
}

function panel(key, about, all, signal) {
  const state = {steps: [], step: null, asked: 0, shown: false};
  const out = el("output", {}), figures = el("div", {class: "figures"}), over = el("div", {class: "figures"});
  const slider = el("input", {type: "range", min: 0, step: 1, on: {input: () => moved(true)}});
  const link = el("a", {class: "data", target: "_blank", rel: "noopener"}, "data", el("span", {class: "unseen"}, ` of ${about.title}`));
  const article = el("article", {class: "panel", "data-instrument": about.name, "data-view": about.view},
    el("div", {class: "titled"}, el("h3", {}, named(about.title)), link),
    about.question && el("p", {class: "note"}, named(about.question)),
    el("div", {class: "controls"}, labelled("Step of training", slider), out), figures, over);

  async function moved(own) {
    const step = state.steps[Number(slider.value)];
    state.step = Number(slider.value) === state.steps.length - 1 ? null : step;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    fill(out, `step ${exact(step)}`);
    if (own && all.linked) for (const other of all.panels.values()) other.follow(step, article);
    await draw(step);
  }

  async function draw(step) {
    if (!state.shown) return;
    const asked = ++state.asked;
    link.href = dataOf("measurement", {run: key, instrument: about.name, step});
    try {
      const found = await read("measurement", {run: key, instrument: about.name, step}, signal);
      if (asked !== state.asked) return;
      const arrays = found.figures.filter((one) => one.shape.length);
      fill(figures, arrays.map((one) => drawn(found, one)), found.notes.map((note) => el("p", {class: "note"}, named(note))));
      await scalars(step);
    } catch (error) {
      if (error.name !== "AbortError" && asked === state.asked) fill(figures, alertOf(error.message));
    }
  }

  async function scalars(step) {
    const {lines: found} = await read("scalars", {run: key, instrument: about.name}, signal);
    const each = Object.entries(found);
    fill(over, each.length && el("div", {class: "titled"}, el("h4", {}, "Over training"),
      el("a", {class: "data", target: "_blank", rel: "noopener", href: dataOf("scalars", {run: key, instrument: about.name})}, "data")),
    el("div", {class: "grid tiny"}, each.map(([name, line]) => {
      const made = frame(`${name} ${short(line.y.at(-1))}`, {tag: "span", note: besides(line)});
      const band = line.low && line.high ? {low: line.low, high: line.high} : undefined;
      queueMicrotask(() => lines(made.plot, {title: `${name}, over training`, series: [{name, x: line.x, y: line.y, band}], xTitle: "steps", at: step, height: 150}));
      return made.figure;
    })));
  }

  return {
    article,
    show() {
      state.shown = true;
      draw(state.steps[Number(slider.value)]);
    },
    follow(step, from) {
      if (from === article || !state.steps.length) return;
      let place = 0;
      state.steps.forEach((one, at) => { if (one <= step) place = at; });
      if (Number(slider.value) !== place) { slider.value = place; moved(false); }
    },
    async update(steps) {
      if (steps.length === state.steps.length && steps.at(-1) === state.steps.at(-1)) return;
      state.steps = steps;
      slider.max = steps.length - 1;
      slider.value = state.step === null ? steps.length - 1 : Math.max(0, steps.indexOf(state.step));
      await moved(false);
    },
  };
}

// What stands beside the last value of a number: its interval, and how far it strays where there is nothing to find.
function besides(line) {
  const last = (name) => line[name] ? line[name].at(-1) : null;
  const parts = [last("low") !== null && last("high") !== null && `interval ${short(last("low"))} … ${short(last("high"))}`,
    last("null sd") !== null && `± ${short(last("null sd"))} by chance alone`];
  return parts.filter(Boolean).join("; ") || null;
}

const labelsOf = (one, axis) => one.labels[axis] || Array.from({length: one.shape[axis]}, (_, place) => String(place));
const titled = (one) => one.unit ? `${one.name}, ${one.unit}` : one.name;

function drawn(found, one) {
  const draw = {line: asLines, heatmap: asHeatmaps, table: asTable, text: asText}[found.view] || asTable;
  return draw(one);
}

function asLines(one) {
  const flat = one.shape.length === 1 ? [one.values] : one.shape.length === 2 ? one.values : one.values.flat(one.shape.length - 2);
  const names = one.shape.length === 2 ? labelsOf(one, 0) : flat.map((_, place) => one.shape.length === 1 ? one.name : String(place));
  const last = one.shape.length - 1, ends = labelsOf(one, last), numbered = one.labels[last] === null;
  const made = frame(titled(one), {tag: "span"});
  const series = flat.map((y, place) => ({name: names[place], x: y.map((_, at) => at), y, labels: numbered ? undefined : ends}));
  queueMicrotask(() => lines(made.plot, {title: one.name, series, xTitle: one.axes[last], yTitle: one.unit,
    ticks: numbered ? null : thinTicks(ends, 24)}));
  const more = flat.length > MOST_PANELS && el("p", {class: "note"}, `The first ${MOST_PANELS} of ${flat.length} lines are drawn; the data have all.`);
  return el("div", {}, made.figure, more);
}

function asHeatmaps(one) {
  const depth = one.shape.length;
  if (depth > 3) return asTable(one);
  const grids = depth === 3 ? one.values : depth === 2 ? [one.values] : [[one.values]];
  const names = depth === 3 ? labelsOf(one, 0) : [""];
  const rows = depth > 1 ? labelsOf(one, depth - 2) : [one.name];
  const flat = grids.flat(2).filter((value) => value !== null);
  const ends = depth === 3 && flat.length ? [flat.reduce((a, b) => Math.min(a, b)), flat.reduce((a, b) => Math.max(a, b))] : [null, null];
  const neutral = flat.some((value) => value < 0) && flat.some((value) => value > 0) ? 0 : null;
  const made = grids.slice(0, MOST_PANELS).map((values, place) => {
    const inner = frame(names[place] ? `${titled(one)}: ${names[place]}` : titled(one), {tag: "span"});
    queueMicrotask(() => heatmap(inner.plot, {title: one.name, values: values.map((row) => row.map(numeric)), rows,
      columns: labelsOf(one, depth - 1), unit: one.unit, low: ends[0], high: ends[1], neutral, own: depth > 1 && one.axes[depth - 2] === OWN_SCALE,
      xTitle: one.axes[depth - 1], yTitle: depth > 1 ? one.axes[depth - 2] : ""}));
    return inner.figure;
  });
  const more = grids.length > MOST_PANELS && el("p", {class: "note"}, `The first ${MOST_PANELS} of ${grids.length} panels are drawn.`);
  return el("div", {class: grids.length > 1 ? "grid small" : ""}, made, more);
}

const numeric = (value) => value === true ? 1 : value === false ? 0 : value;
const cell = (value) => Array.isArray(value) ? value.flat(Infinity).slice(0, 8).map(cell).join(", ") : typeof value === "number" ? short(value) : value === null ? "–" : String(value);

function asTable(one) {
  const rows = labelsOf(one, 0), wide = one.shape.length > 1;
  const columns = wide ? labelsOf(one, 1) : [one.unit || "value"];
  const cells = one.values.slice(0, MOST_ROWS).map((row, place) => [named(rows[place]), ...(wide ? row.map(cell) : [cell(row)])]);
  const more = rows.length > MOST_ROWS && el("p", {class: "note"}, `The first ${MOST_ROWS} of ${rows.length} rows are shown.`);
  return el("div", {}, table([one.axes[0], ...columns.map((name) => named(name))], cells, titled(one)), more);
}

function asText(one) {
  const wide = one.shape.length > 1;
  const labels = labelsOf(one, one.shape.length - 1);
  const rows = wide ? one.values.flat(Math.max(0, one.shape.length - 2)) : [one.values];
  const names = one.shape.length === 2 ? labelsOf(one, 0) : [];
  return el("div", {}, el("p", {class: "tag"}, titled(one)), rows.slice(0, MOST_ROWS).map((values, place) =>
    el("div", {}, names[place] && el("h4", {}, named(names[place])), marked(labels, values, one.unit))));
}

// A text whose tokens carry a number each: written below the token, and its shade.
export function marked(words, values, unit) {
  const known = values.filter((value) => typeof value === "number");
  const low = Math.min(0, ...known), high = Math.max(...known, low + 1e-9);
  const least = known.length ? Math.min(...known) : 0;
  return el("div", {},
    el("p", {class: "marked"}, words.map((word, place) => {
      const value = numeric(values[place]);
      if (typeof value !== "number") return el("span", {class: "token"}, el("span", {}, visible(word)), el("small", {}, "–"));
      const {background, color} = shade((value - low) / (high - low));
      const token = el("span", {class: "token", title: `${visible(word)}: ${short(value)} ${unit}`}, el("span", {}, visible(word)), el("small", {}, rounded(value)));
      token.firstChild.style.background = background;
      token.firstChild.style.color = color;
      return token;
    })),
    el("p", {class: "note legend"}, `${unit || "value"}: `, legend(low, high), ` from ${rounded(least)} to ${rounded(Math.max(...known, least))}`));
}

const rounded = (value) => short(Number(value.toFixed(2)));

function legend(low, high) {
  return [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const {background, color} = shade(share);
    const made = el("span", {class: "swatch"}, short(Number((low + share * (high - low)).toPrecision(2))));
    made.style.background = background;
    made.style.color = color;
    return made;
  });
}
