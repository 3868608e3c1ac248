// States of runs in words and signs, never by colour alone.

import {el} from "./dom.js";

const SIGNS = {running: "▶", preparing: "…", done: "✓", failed: "✕", diverged: "∞", crashed: "⚠", preempted: "❙❙",
  unreadable: "?", unknown: "?"};

export const STATES = Object.keys(SIGNS);

export const badge = (state) => el("span", {class: `state state-${state in SIGNS ? state : "unknown"}`},
  el("span", {"aria-hidden": "true"}, `${SIGNS[state] || "?"} `), state);

export function progress(step, steps) {
  if (step === null) return el("span", {}, "–");
  const words = steps ? `${step.toLocaleString("en")} of ${steps.toLocaleString("en")}` : step.toLocaleString("en");
  const bar = steps ? el("progress", {max: steps, value: Math.min(step, steps), "aria-label": `step ${words}`}) : null;
  return el("span", {class: "progress"}, bar, el("span", {}, words));
}
