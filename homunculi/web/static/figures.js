// Figures over the vendored charts. Lines differ by dash and marker as well as colour; heat-maps have one scale from
// pale to deep with its numbers beside it; every figure says in words what it shows and links to its data.

import {el, fill, inert} from "./dom.js";
import {figure as short} from "./numbers.js";

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "x", "cross", "triangle-down", "star"];
const MOST_LINES = 12;
// From pale to deep in lightness, so that order survives without hue; turned round on dark ground.
const SCALE = ["#dce9f4", "#c2d9ea", "#a3c6df", "#70a5ca", "#4482b1", "#266092", "#123f6b", "#071f3c"];

const drawn = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => { for (const [plot, again] of drawn) if (plot.isConnected) again(); });

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (place) => css(`--c${place % 8}`);
// The charts read some markup in texts: theirs is given as they escape it.
export const literal = (text) => inert(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// An empty figure with its caption; `draw(plot)` puts a chart into it.
export function frame(title, {data = null, note = null, tag = "strong"} = {}) {
  const plot = el("div", {class: "plot", role: "img", tabindex: "0"});
  const link = data && el("a", {href: data, target: "_blank", rel: "noopener", class: "data"}, "data",
    el("span", {class: "unseen"}, ` of ${title}`));
  const caption = el("figcaption", {}, el(tag, {}, el("bdi", {}, title)), link);
  const made = el("figure", {}, caption, plot, note && el("p", {class: "note"}, note));
  return {figure: made, plot, link};
}

function layoutOf(more) {
  const axis = {gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--soft"), automargin: true,
    tickfont: {size: 12}, title: {standoff: 6, font: {size: 12}}};
  const {xaxis = {}, yaxis = {}, ...rest} = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: css("--soft"), size: 12},
    margin: {l: 52, r: 14, t: 10, b: 40}, height: 260, hovermode: "closest", showlegend: false,
    hoverlabel: {bgcolor: css("--card"), bordercolor: css("--soft"), font: {color: css("--ink")}, namelength: -1},
    legend: {orientation: "h", x: 0, y: 1.01, yanchor: "bottom", traceorder: "normal", font: {color: css("--ink"), size: 12}},
    uirevision: "kept",
    ...rest,
    xaxis: {...axis, ...xaxis, title: {...axis.title, text: literal(xaxis.title)}},
    yaxis: {...axis, ...yaxis, title: {...axis.title, text: literal(yaxis.title)}},
  };
}

const SETTINGS = {displayModeBar: false, responsive: true, showTips: false, doubleClick: "reset+autosize"};

// The charts are a megabyte and a half: they come with the first figure, or with a view that will have some, so that
// views without one open at once.
let charts = null;
const left = new WeakSet();  // plots of views that were left
export function chartsReady() {
  charts ??= new Promise((resolve, reject) => {
    stylesAsRules();
    const script = el("script", {src: "/static/vendor/plotly-cartesian.min.js"});
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new Error("the charts could not be loaded")));
    document.head.append(script);
  });
  return charts;
}

// The charts write some styles as attributes, which the page's policy refuses as inline styles; set as rules of the
// element they are allowed. Markup with styles of its own stays refused.
function stylesAsRules() {
  const asItWas = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function setAttribute(name, value) {
    if (name === "style" && this.style) this.style.cssText = value;
    else asItWas.call(this, name, value);
  };
}

function draw(plot, words, make) {
  const again = async () => {
    if (!window.Plotly) await chartsReady();
    if (left.has(plot)) return null;
    const {traces, layout} = make();
    return window.Plotly.react(plot, traces, layoutOf(layout), SETTINGS);
  };
  for (const old of drawn.keys()) if (!old.isConnected && old !== plot) drawn.delete(old);
  drawn.set(plot, again);
  plot.setAttribute("aria-label", inert(words));
  return again();
}

export function forget(signal) {
  signal.addEventListener("abort", () => {
    for (const plot of drawn.keys()) {
      left.add(plot);
      window.Plotly?.purge(plot);
    }
    drawn.clear();
  });
}

const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));

export function inWords(title, series, xTitle) {
  const parts = series.map(({name, x, y}) => {
    const values = finite(y);
    if (!values.length) return `${name}: nothing yet.`;
    const low = values.reduce((a, b) => Math.min(a, b));
    return `${name}: from ${short(values[0])} to ${short(values.at(-1))}, lowest ${short(low)}, up to ${xTitle} ${short(x.at(-1))}.`;
  });
  return [`${title}.`, ...parts].join(" ");
}

// The vertical range of what follows the first share of the x axis, so that a steep beginning does not flatten the rest.
function fitted(series, share) {
  const end = Math.max(...series.flatMap((one) => one.x.slice(-1)));
  const values = finite(series.flatMap((one) => [one.y, ...(one.band ? [one.band.low, one.band.high] : [])]
    .flatMap((y) => y.filter((_, place) => one.x[place] >= share * end))));
  if (values.length < 2) return undefined;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const room = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - room, high + room];
}

// series: {name, x, y, band: {low, high}?, labels: texts for hover?}. `at`: a marked place on the x axis. `focus`: the
// first share of the x axis that the vertical axis need not hold.
export function lines(plot, {title, series, xTitle, yTitle = "", log = false, at = null, ticks = null, focus = 0, height = 260}) {
  const shown = series.slice(0, MOST_LINES);
  return draw(plot, inWords(title, shown, xTitle), () => {
    const traces = [];
    shown.forEach((one, place) => {
      const look = one.look ?? place;
      if (one.band) traces.push(...bandOf(one, look));
      traces.push(lineOf(one, look, shown.length === 1 && one.x.length > 60));
    });
    const shapes = at === null ? [] : [{type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1,
      line: {color: css("--soft"), width: 1.5, dash: "dot"}}];
    const xaxis = {title: xTitle, rangemode: "tozero", ...(ticks || {})};
    const many = shown.length > 1;
    const range = focus && !log ? fitted(shown, focus) : undefined;
    const yaxis = {title: yTitle, range, autorange: range === undefined, type: log ? "log" : "linear", ...(log ? {dtick: undefined, nticks: 6} : {})};
    return {traces, layout: {shapes, xaxis, yaxis, showlegend: many, height: height + (many ? 24 : 0),
      margin: {l: 52, r: 14, t: many ? 30 : 10, b: 40}}};
  });
}

function lineOf(one, look, plain) {
  const few = one.x.length <= 40;
  return {
    type: "scatter", mode: plain ? "lines" : "lines+markers", name: literal(one.name), x: one.x, y: one.y,
    line: {color: colour(look), width: one.faint ? 1.1 : 2, dash: plain ? "solid" : DASHES[look % DASHES.length]},
    opacity: one.faint ? 0.75 : 1, connectgaps: false,
    marker: {symbol: SYMBOLS[look % SYMBOLS.length], size: few ? 7 : 6, color: colour(look), maxdisplayed: few ? 0 : 14},
    text: one.labels ? one.labels.map(literal) : undefined,
    hovertemplate: one.labels ? "%{text}<br>%{y:.5g}<extra>%{fullData.name}</extra>"
      : "%{x:,}<br>%{y:.5g}<extra>%{fullData.name}</extra>",
  };
}

function bandOf(one, look) {
  const edge = {type: "scatter", mode: "lines", x: one.x, hoverinfo: "skip", showlegend: false,
    line: {width: 0.8, color: colour(look), dash: DASHES[look % DASHES.length]}, opacity: 0.6};
  return [{...edge, y: one.band.low}, {...edge, y: one.band.high, fill: "tonexty", fillcolor: faded(colour(look))}];
}

function faded(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},0.16)`;
}

export function scaleColours() {
  const steps = dark.matches ? [...SCALE].reverse() : SCALE;
  return steps.map((one, place) => [place / (steps.length - 1), one]);
}

// The colour of a share from 0 to 1 on the same scale, and one that can be read on it.
export function shade(share) {
  const steps = dark.matches ? [...SCALE].reverse() : SCALE;
  const place = Math.min(steps.length - 1, Math.max(0, Math.round(share * (steps.length - 1))));
  const deep = dark.matches ? place < 4 : place > 3;
  return {background: steps[place], color: deep ? "#ffffff" : "#0b1520"};
}

// rows × columns of numbers or null. Labels may repeat: places are numbered underneath. `own`: rows have nothing in
// common, and each is shaded from its lowest to its highest.
export function heatmap(plot, {title, values, rows, columns, xTitle = "", yTitle = "", unit = "", low = null,
  high = null, neutral = null, height = null, ticks = null, own = false}) {
  const known = finite(values.flat());
  const least = low ?? (known.length ? known.reduce((a, b) => Math.min(a, b)) : 0);
  const most = high ?? (known.length ? known.reduce((a, b) => Math.max(a, b)) : 1);
  const words = `${title}: ${values.length} rows by ${columns.length} columns, ` +
    (known.length ? `from ${short(least)} to ${short(most)} ${unit}.` : "nothing measured.");
  told(plot, values.some((row) => row.includes(null)) && "Blank: there is nothing to say.");
  const top = most > least ? most : least + (Math.abs(least) || 1);
  const hover = values.map((row, r) => row.map((_, c) => literal(`${rows[r]} · ${columns[c]}`)));
  return draw(plot, words, () => ({
    traces: [{
      type: "heatmap", z: own ? values.map(shares) : values, zmin: own ? 0 : least, zmax: own ? 1 : top, colorscale: scaleColours(),
      text: hover, hoverongaps: false, customdata: values, hovertemplate: "%{text}<br>%{customdata:.5g}<extra></extra>", xgap: columns.length < 60 ? 1 : 0, ygap: rows.length < 40 ? 1 : 0,
      colorbar: barOf(own ? [[0, "row's lowest"], [1, "row's highest"]] : ticks ?? numbersOf(least, top, neutral), own ? "" : unit),
    }],
    layout: {
      height: height ?? Math.min(620, Math.max(150, 96 + 22 * rows.length)),
      margin: {l: 96, r: 10, t: 10, b: 56},
      xaxis: {title: xTitle, showgrid: false, zeroline: false, tickangle: columns.length > 14 ? -50 : 0, ...thinTicks(columns)},
      yaxis: {title: yTitle, showgrid: false, zeroline: false, autorange: "reversed", ...thinTicks(rows, 30)},
    },
  }));
}

// Each number of a row as its place between the lowest and the highest.
function shares(row) {
  const known = finite(row), low = Math.min(...known), span = Math.max(...known) - low;
  return row.map((value) => value === null ? null : span > 0 ? (value - low) / span : 0);
}

// Numbers beside a scale: its ends and middle, and the neutral value with its name. Pairs of place and text.
function numbersOf(low, high, neutral) {
  const ticks = [low, low + (high - low) / 2, high].map((tick) => [tick, short(tick)]);
  if (neutral === null || neutral === undefined || neutral < low || neutral > high) return ticks;
  const apart = ticks.filter(([tick]) => Math.abs(tick - neutral) >= (high - low) * 0.08);
  return [...apart, [neutral, `${short(neutral)} neutral`]];
}

const barOf = (ticks, unit) => ({
  thickness: 12, outlinewidth: 0, tickvals: ticks.map(([place]) => place), ticktext: ticks.map(([, text]) => text),
  tickfont: {size: 11}, title: {text: literal(unit), side: "right", font: {size: 11}},
});

// One line below a figure, or none.
function told(plot, words) {
  plot.parentElement?.querySelector(".told")?.remove();
  if (words) plot.after(el("p", {class: "note told"}, words));
}

export function thinTicks(labels, most = 40) {
  const every = Math.max(1, Math.ceil(labels.length / most));
  const places = labels.map((_, place) => place).filter((place) => place % every === 0);
  const cut = (text) => text.length > 18 ? `${text.slice(0, 17)}…` : text;
  return {tickmode: "array", tickvals: places, ticktext: places.map((place) => literal(cut(visible(labels[place]))))};
}

// Spaces and line ends that a token begins or ends with, made visible.
export const visible = (text) => inert(text).replaceAll("\n", "⏎").replace(/^ /, "␣").replace(/ $/, "␣");

export function nothing(plot, words) {
  drawn.delete(plot);
  fill(plot, el("p", {class: "note"}, words));
}
