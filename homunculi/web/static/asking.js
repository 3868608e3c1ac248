// Fields that the views share which ask the desk: which run, which step, how to write.

import {read} from "./api.js";
import {el, fill, labelled, named, select} from "./dom.js";

// A choice of runs; `changed(key)` at the start and at every change.
export async function runChoice(words, chosen, signal, changed) {
  const {runs} = await read("runs", {}, signal);
  const usable = runs.filter((run) => run.state !== "unreadable");
  if (!usable.length) return {field: el("p", {class: "note"}, "There are no runs yet."), value: () => null};
  const first = usable.find((run) => run.key === chosen)?.key ?? (usable.find((run) => run.state === "done") || usable[0]).key;
  const made = select(usable.map((run) => [run.key, run.key === run.name ? run.name : `${run.name} – ${run.key}`]), first, changed);
  return {field: labelled(words, made), value: () => made.value};
}

// Steps with a checkpoint; empty is the last.
export function stepChoice() {
  const made = el("select", {}, el("option", {value: ""}, "last"));
  const load = async (key, signal) => {
    const {checkpoints} = await read("run", {run: key}, signal);
    fill(made, el("option", {value: ""}, "last"), checkpoints.map((step) => el("option", {value: step}, String(step))));
  };
  return {field: labelled("Checkpoint", made), load, value: () => made.value === "" ? null : Number(made.value)};
}

const number = (attributes) => el("input", {type: "number", required: true, ...attributes});

// Prompt, length, temperature and seed.
export function writing(limits, changed = () => {}) {
  const on = {input: () => changed()};
  const text = el("textarea", {rows: 3, maxlength: limits.text, value: "One morning", on});
  const tokens = number({min: 1, max: limits.tokens, value: 60, on});
  const temperature = number({min: 0, max: 5, step: 0.1, value: 0.8, on});
  const seed = number({min: 0, max: 2147483647, value: 0, on});
  return {
    fields: [labelled("Prompt", text, `at most ${limits.text.toLocaleString("en")} characters`),
      el("div", {class: "controls"}, labelled("Tokens", tokens), labelled("Temperature", temperature), labelled("Seed", seed))],
    value: () => ({text: text.value, tokens: Number(tokens.value), temperature: Number(temperature.value), seed: Number(seed.value)}),
  };
}

export const needsToken = (about) => !about.acts && el("p", {class: "alert", role: "status"},
  "This tab only reads. To let models act, open the address that ", el("code", {}, "homunculi serve"), " printed.");

export const textOf = (prompt, said) => el("pre", {}, prompt && el("mark", {}, prompt), named(said));
