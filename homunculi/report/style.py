"""How the page looks, and the small script that reads values out of figures. The page is whole without the script."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fdfdfc; --card: #f4f3f0; --ink: #1d1d1f; --soft: #5c5c63; --line: #dcdad4; --link: #0b5cad;
  --good: #1b6e3c; --bad: #a8261c; --wait: #8a5a00; --tint: #fff3cf;
  --c0: #0b62a8; --c1: #c4501b; --c2: #1b7f5c; --c3: #8a4a9e; --c4: #8d6200; --c5: #1f7f9f; --c6: #b8336a;
  --c7: #55555c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #17181b; --card: #212327; --ink: #e8e8ea; --soft: #a5a6ad; --line: #3a3c42; --link: #8abcf2;
    --good: #79d19b; --bad: #f2948a; --wait: #e6b75c; --tint: #453a17;
    --c0: #6cb2f0; --c1: #f08a5d; --c2: #5cc9a0; --c3: #c79be0; --c4: #e0b04a; --c5: #7fd3ec; --c6: #f07fae;
    --c7: #b5b5bb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
main, dd, dt, li, p, h1, h3, summary { overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { font-size: .9em; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
nav { margin: 1.1rem 0 0; font-size: .9rem; }
nav a { display: inline-block; margin: 0 1rem .3rem 0; }
.kicker, .note, .ask, dt { color: var(--soft); font-size: .875rem; }
.under { color: var(--soft); }
.state { font-weight: 600; }
.state-done, .yes { color: var(--good); }
.state-failed, .state-diverged, .state-crashed, .no { color: var(--bad); }
.state-preparing, .state-running, .state-preempted, .state-unknown { color: var(--wait); }
.alert { border-left: 4px solid var(--bad); background: var(--card); padding: .5rem .8rem; margin: .8rem 0; }

.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0; }
.tiles > div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; min-width: 0; }
.tiles dt { line-height: 1.3; }
.tiles dd { margin: .15rem 0 0; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles small { display: block; margin-top: .15rem; font-size: .8rem; color: var(--soft); line-height: 1.35; }
.facts { columns: 2 21rem; column-gap: 2.5rem; margin: .4rem 0; }
.facts > div { display: flex; justify-content: space-between; gap: 1rem; padding: .22rem .3rem; break-inside: avoid; }
.facts > div { border-bottom: 1px solid var(--line); }
.facts dt { flex: 1 0 auto; max-width: 55%; }
.facts dd { margin: 0; text-align: right; font-size: .92rem; font-variant-numeric: tabular-nums; }
.changed { background: var(--tint); }
.tag { color: var(--soft); font-size: .78rem; display: block; }

.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { overflow-wrap: break-word; max-width: 32rem; font-variant-numeric: tabular-nums; }
tbody th { font-weight: 500; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }

figure { margin: 1rem 0 1.6rem; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline; min-height: 1.6rem; }
.read { color: var(--soft); font-size: .875rem; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2rem; }
.plot { display: block; width: 100%; height: auto; color: var(--ink); touch-action: pan-y; }
.main .plot { display: none; }
.main .plot.big { display: block; }
.plot text { font-size: 13px; fill: var(--soft); }
.plot.big text { font-size: 10.5px; }
.plot .tick.y { text-anchor: end; dominant-baseline: central; }
.plot .tick.x { text-anchor: middle; dominant-baseline: hanging; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .axis, .plot .rule { stroke: var(--soft); stroke-width: 1; }
.plot .broken { stroke: var(--bad); stroke-width: 1.8; }
g.line, g.marked, g.faint { fill: none; stroke-width: 2; stroke-linejoin: round; }
g.faint { stroke-width: 1; opacity: .33; }
g > path { stroke-dasharray: none; stroke-width: 1.6; fill: var(--ground); }
.big g.line, .big g.marked { stroke-width: 1.7; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; margin: .2rem 0 0; padding: 0; }
.legend { font-size: .9rem; }
.legend svg { vertical-align: -2px; }

svg.leaks { max-width: 24rem; }
ul svg.leaks { width: 14px; }
.leaks rect { fill: var(--bad); }
.leaks .middle { opacity: .6; } .leaks .weak { opacity: .28; }
.leaks .none { fill: var(--line); opacity: .55; }
.leaks .unasked { fill: none; stroke: var(--line); }
.leaks text { font-size: 11px; fill: var(--soft); }
.leaks .tick.y { text-anchor: end; dominant-baseline: central; }
.leaks .tick.x { text-anchor: middle; }

.narrow { max-width: 34rem; }
svg.heat { display: block; max-width: 100%; height: auto; }
ul svg.heat { display: inline; }
.heat rect { fill: var(--c0); }
.heat .none { fill: none; stroke: var(--line); }
.heat text { font-size: 11px; fill: var(--ink); dominant-baseline: central; }
.heat .row { text-anchor: end; }
.heat .cell, .heat .column { text-anchor: middle; }
.heat .axes { fill: var(--soft); }

table.when th, table.when td { padding-top: .1rem; padding-bottom: .1rem; vertical-align: middle; }
table.when td { white-space: nowrap; }
.when svg { display: block; }
.when text { font-size: 11px; fill: var(--soft); }
.when .grid { stroke: var(--line); }
.when .bar { stroke-width: 1.6; fill: none; }
.when .dot { stroke-width: 1.6; fill: var(--ground); }

.curves > input { position: absolute; opacity: 0; }
.ask { margin-right: .6rem; }
.curves > label { display: inline-block; padding: .15rem .8rem; margin-right: .3rem; font-size: .9rem; }
.curves > label { cursor: pointer; border: 1px solid var(--line); border-radius: 1rem; }
.curves > input:checked + label { background: var(--ink); color: var(--ground); border-color: var(--ink); }
.curves > input:focus-visible + label { outline: 3px solid var(--link); outline-offset: 2px; }
.over { display: none; }
#by-steps:checked ~ .figures .over-steps, #by-tokens:checked ~ .figures .over-tokens,
#by-flops:checked ~ .figures .over-flops { display: block; }

pre { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; background: var(--card); }
pre { border-radius: .4rem; padding: .6rem .8rem; margin: .3rem 0 .9rem; font-size: .9rem; line-height: 1.5; }
ul.files { padding-left: 1.2rem; }

@media (max-width: 640px) {
  main { padding: 1rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  .main .plot { display: block; }
  .main .plot.big { display: none; }
  .plot text { font-size: 15px; }
  .tiles dd { font-size: 1.15rem; }
  .when th[scope=row] { max-width: 8.5rem; }
}
"""

SCRIPT = """
"use strict";
const axisOf = (text) => {
  const [low, high, kind, start, end, label] = text.split("|");
  return {low: +low, high: +high, log: kind === "log", start: +start, end: +end, label};
};
const valueAt = (axis, place) => {
  const share = (place - axis.start) / (axis.end - axis.start);
  return axis.log ? axis.low * Math.pow(axis.high / axis.low, share) : axis.low + share * (axis.high - axis.low);
};
const shown = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e9 || size < 1e-3)) return value.toExponential(2);
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
};
const nearest = (points, at) => points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
const linesOf = (svg) => [...svg.querySelectorAll("g[data-name]")].map((group) => {
  const texts = [...group.querySelectorAll("polyline")].flatMap((line) => line.getAttribute("points").split(" "));
  return {name: group.dataset.name, points: texts.map((text) => text.split(",").map(Number))};
}).filter((line) => line.points.length);

for (const svg of document.querySelectorAll("svg.plot")) {
  const x = axisOf(svg.dataset.x), y = axisOf(svg.dataset.y);
  const out = svg.closest("figure").querySelector("output");
  const title = svg.querySelector("title");
  svg.setAttribute("aria-label", title.textContent + ". " + svg.querySelector("desc").textContent);
  svg.removeAttribute("aria-labelledby");
  title.remove();
  const rule = document.createElementNS(svg.namespaceURI, "line");
  rule.setAttribute("class", "rule");
  rule.setAttribute("y1", y.end);
  rule.setAttribute("y2", y.start);
  let lines = null;
  svg.addEventListener("pointermove", (event) => {
    lines = lines || linesOf(svg);
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const near = lines.filter((line) => at > line.points[0][0] - 6 && at < line.points.at(-1)[0] + 6)
      .map((line) => ({name: line.name, point: nearest(line.points, at)}));
    if (!near.length) return;
    const first = nearest(near.map((line) => line.point), at)[0];
    rule.setAttribute("x1", first);
    rule.setAttribute("x2", first);
    svg.append(rule);
    const where = (place) => x.label === "steps" ? Math.round(valueAt(x, place)).toLocaleString("en")
      : shown(valueAt(x, place));
    const parts = near.map((line) => (near.length > 1 ? line.name + " " : "") + shown(valueAt(y, line.point[1]))
      + (Math.abs(line.point[0] - first) > 2 ? " (at " + where(line.point[0]) + ")" : ""));
    out.textContent = where(first) + " " + x.label + ": " + parts.join(" · ");
  });
  svg.addEventListener("pointerleave", () => { out.textContent = ""; rule.remove(); });
}
"""

SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode("ascii")

# Nothing is fetched, nothing is sent, no script runs but the one above.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{SCRIPT_HASH}'"
)
