// Any runs on the same axes, grouped by everything but the seed: means, bands, ends, what differs.

import {dataOf, read, repeat, viewOf} from "./api.js";
import {checkbox, el, fill, labelled, named, select, table} from "./dom.js";
import {frame, lines} from "./figures.js";
import {brief, decimals, exact, figure as short} from "./numbers.js";
import {badge} from "./states.js";

const AXES = {step: "steps", tokens: "tokens", seconds: "seconds"};

export async function show(main, query, signal) {
  const runs = query.getAll("run");
  if (!runs.length) {
    const {runs: all} = await read("runs", {}, signal);
    fill(main, el("h1", {}, "Compare"), el("p", {}, all.length
      ? "Tick runs in the list, then press Compare." : "There are no runs yet."),
      el("p", {}, el("a", {class: "button", href: "#/"}, "To the list of runs")));
    return;
  }
  const asked = {run: runs, metric: query.get("metric") || "val/bpb", axis: "step"};
  let log = false, last = "";
  const made = frame("", {data: "#"});
  const title = made.figure.querySelector("bdi");
  const note = el("p", {class: "note"}), ends = el("div", {}), differ = el("div", {});
  const metrics = el("span", {});

  async function refresh(force = false) {
    const found = await read("compare", asked, signal);
    const text = JSON.stringify(found);
    if (text === last && !force) return;
    last = text;
    draw(found);
  }

  function draw(found) {
    fill(title, found.metric);
    made.link.href = dataOf("compare", asked);
    if (!metrics.contains(document.activeElement)) {
      const names = [...new Set([found.metric, ...found.metrics])].filter((name) => !["tokens", "seconds", "flops"].includes(name)).sort();
      fill(metrics, labelled("Metric", select(names.map((name) => [name, name]), found.metric, (one) => { asked.metric = one; refresh(true); })));
    }
    const series = found.groups.map((group, look) => ({
      name: `${group.name} (n = ${group.line.n})`, look, x: group.line.x, y: group.line.mean,
      band: group.line.n > 1 ? {low: group.line.low, high: group.line.high} : null,
    })).filter((one) => one.x.length);
    lines(made.plot, {title: found.metric, series, xTitle: AXES[found.axis], yTitle: found.metric, log, focus: 0.05, height: 380});
    fill(note, "Line: mean over the seeds of a group, as far as all its runs have come. Band: lowest to highest seed. The vertical axis is fitted to what follows the first 5 %. ",
      "For a verdict with an interval: ", el("code", {}, "homunculi compare"), ".");
    const reached = new Set(found.groups.flatMap((group) => group.runs.map((run) => run.at)));
    fill(ends, el("h2", {}, "At the end"), endsOf(found),
      reached.size > 1 && el("p", {class: "alert", role: "status"}, "Not all runs have come equally far: their ends are not to be held against each other."));
    fill(differ, el("h2", {}, "What differs"), differing(found));
  }

  const axis = select(Object.entries(AXES), "step", (one) => { asked.axis = one; refresh(true); });
  fill(main, el("h1", {}, "Compare"),
    el("p", {class: "under"}, `${runs.length} runs. Runs that differ in nothing but the seed form a group. `,
      el("a", {href: viewOf("", {run: runs})}, "Choose others")),
    el("div", {class: "controls"}, metrics, labelled("Over", axis),
      checkbox("by ratio (log scale)", false, (on) => { log = on; refresh(true); })),
    made.figure, note, ends, differ);
  await refresh();
  repeat(refresh, () => 3000, signal);
}

function endsOf(found) {
  const best = Math.min(...found.groups.map((group) => group.mean ?? Infinity));
  const rows = found.groups.map((group) => [
    el("span", {}, named(group.name), el("small", {class: "tag"}, named(group.architecture))),
    decimals(group.mean), group.n > 1 ? `${decimals(group.low)} … ${decimals(group.high)}` : "–", `${group.n} of ${group.runs.length}`,
    group.mean === null || !Number.isFinite(best) ? "–" : group.mean === best ? "lowest" : `+${short(group.mean - best)}`,
    brief(group.parameters),
    el("ul", {class: "seeds"}, group.runs.map((run) => el("li", {}, el("a", {href: viewOf("run", {run: run.key})}, `seed ${exact(run.seed)}`),
      " ", badge(run.state), ` ${decimals(run.end)}`, run.at !== null && ` at ${exact(run.at)}`))),
  ]);
  return table(["group", `${found.metric}, mean`, "lowest … highest seed", "n", "above the lowest", "parameters", "runs"], rows, "ends of the groups");
}

function differing(found) {
  const {rows, left_out: leftOut} = found.varying;
  if (found.groups.length < 2) return el("p", {class: "note"}, "There is one group: nothing differs but the seed.");
  const cells = rows.map((row) => [named(row.name), ...row.values.map((value) => named(value))]);
  return el("div", {}, rows.length ? table(["setting", ...found.groups.map((group) => named(group.name))], cells, "settings that differ")
    : el("p", {class: "note"}, "No setting, text or budget differs."), leftOut > 0 && el("p", {class: "note"}, `${leftOut} more differ.`));
}
