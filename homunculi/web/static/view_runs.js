// The list of runs: sorted, filtered, chosen for comparison; follows what is being written.

import {read, repeat, viewOf} from "./api.js";
import {add, el, fill, labelled, named, select} from "./dom.js";
import {brief, decimals, exact, moment, since} from "./numbers.js";
import {badge, progress, STATES} from "./states.js";

const COLUMNS = [
  {key: "name", title: "run", text: true},
  {key: "state", title: "state", text: true},
  {key: "step", title: "step"},
  {key: "val_bpb", title: "val bits/byte"},
  {key: "val_loss", title: "val loss"},
  {key: "train_loss", title: "train loss"},
  {key: "architecture", title: "architecture", text: true},
  {key: "parameters", title: "parameters"},
  {key: "seed", title: "seed"},
  {key: "created", title: "started"},
];

export async function show(main, query, signal, about) {
  const seen = {runs: [], sort: "created", down: true, filter: "", state: "", chosen: new Set(query.getAll("run"))};
  const body = el("tbody", {});
  const count = el("p", {class: "note", role: "status"});
  const bar = el("div", {class: "bar"});
  const heads = el("tr", {}, el("th", {scope: "col"}, el("span", {class: "unseen"}, "choose")));
  const draw = () => { drawHeads(heads, seen, draw); drawRows(body, count, seen, drawBar); drawBar(); };
  const drawBar = () => fill(bar, barOf(seen, draw, about.limits.runs));
  const search = el("input", {type: "search", placeholder: "name, folder, architecture", on: {input: () => {
    seen.filter = search.value.toLowerCase();
    draw();
  }}});
  const states = select([["", "all"], ...STATES.map((one) => [one, one])], "", (one) => { seen.state = one; draw(); });
  let last = "";
  const refresh = async () => {
    const {runs} = await read("runs", {}, signal);
    const text = JSON.stringify(runs);
    if (text === last) return;
    last = text;
    seen.runs = runs;
    draw();
  };
  await refresh();
  fill(main, el("h1", {}, "Runs"), count,
    el("form", {class: "controls", role: "search", on: {submit: (event) => event.preventDefault()}},
      labelled("Filter", search), labelled("State", states), bar),
    el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "list of runs"},
      el("table", {class: "runs"}, el("thead", {}, heads), body)));
  repeat(refresh, () => 2500, signal);
}

function drawHeads(row, seen, draw) {
  const buttons = COLUMNS.map(({key, title, text}) => {
    const sorted = seen.sort === key ? (seen.down ? "descending" : "ascending") : null;
    const act = () => {
      [seen.down, seen.sort] = seen.sort === key ? [!seen.down, key] : [!text, key];
      draw();
      row.querySelector(`[data-key="${key}"]`).focus();
    };
    const arrow = sorted ? (seen.down ? " ▼" : " ▲") : "";
    return el("th", {scope: "col", "aria-sort": sorted || "none"},
      el("button", {type: "button", class: "plain", "data-key": key, on: {click: act}}, title, arrow));
  });
  const [choose] = row.children;
  fill(row, choose, buttons);
}

function visibleRuns(seen) {
  const fits = (run) => (!seen.state || run.state === seen.state) &&
    (!seen.filter || `${run.name} ${run.key} ${run.architecture}`.toLowerCase().includes(seen.filter));
  const sign = seen.down ? -1 : 1;
  return seen.runs.filter(fits).sort((a, b) => {
    const [x, y] = [a[seen.sort], b[seen.sort]];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y);
  });
}

function drawRows(body, count, seen, changed) {
  const focused = document.activeElement?.dataset?.focus;
  const runs = visibleRuns(seen);
  const going = seen.runs.filter((run) => run.state === "running" || run.state === "preparing").length;
  fill(count, `${runs.length} of ${seen.runs.length} runs`, going ? `, ${going} going on` : "");
  body.replaceChildren(...runs.map((run) => rowOf(run, seen, changed)));
  if (!runs.length) {
    const words = seen.runs.length ? "No run fits the filter." : "No runs yet: homunculi train quickstart makes one.";
    body.append(el("tr", {}, el("td", {colspan: COLUMNS.length + 1}, words)));
  }
  if (focused) [...body.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused)?.focus();
}

function rowOf(run, seen, changed) {
  const box = el("input", {type: "checkbox", checked: seen.chosen.has(run.key), "data-focus": `box ${run.key}`,
    "aria-label": `choose ${run.name}`, on: {change: () => {
      if (box.checked) seen.chosen.add(run.key); else seen.chosen.delete(run.key);
      changed();
    }}});
  const link = el("a", {href: viewOf("run", {run: run.key}), "data-focus": `link ${run.key}`}, named(run.name));
  const where = run.key === run.name ? null : el("small", {class: "tag"}, named(run.key));
  const cells = [badge(run.state), progress(run.step, run.steps), decimals(run.val_bpb), decimals(run.val_loss),
    decimals(run.train_loss), named(run.architecture), brief(run.parameters), exact(run.seed),
    el("span", {title: moment(run.created)}, since(run.created))];
  return el("tr", {}, el("td", {}, box), el("th", {scope: "row"}, link, where), cells.map((cell) => el("td", {}, cell)));
}

function barOf(seen, draw, most) {
  const chosen = seen.runs.filter((run) => seen.chosen.has(run.key));
  if (!chosen.length) return el("span", {class: "note"}, "Tick runs to compare them.");
  const groups = new Set(chosen.map((run) => run.group));
  const others = seen.runs.filter((run) => groups.has(run.group) && !seen.chosen.has(run.key));
  const more = () => { others.forEach((run) => seen.chosen.add(run.key)); draw(); };
  const compared = chosen.slice(0, most).map((run) => run.key);
  return add(el("div", {class: "bar"}), [
    el("a", {class: "button", href: viewOf("compare", {run: compared})}, `Compare ${compared.length}`),
    others.length > 0 && el("button", {type: "button", on: {click: more}}, `Add ${others.length} with other seeds`),
    el("button", {type: "button", on: {click: () => { seen.chosen.clear(); draw(); }}}, "Choose none"),
  ]);
}
