// What the field says about itself, with the verdict that runs gave.

import {dataOf, read} from "./api.js";
import {el, fill, folded, labelled, named, select, table} from "./dom.js";
import {figure as short} from "./numbers.js";

const SIGNS = {supported: "✓", refuted: "✕", inconclusive: "≈", "not run": "○"};

export async function show(main, query, signal) {
  fill(main, el("h1", {}, "Claims"), el("p", {class: "note", role: "status"}, "Working out every verdict from what is stored; the first time takes some seconds …"));
  const {claims: found} = await read("claims", {}, signal);
  const notRun = (one) => one.verdict === "not run";
  const claims = [...found.filter((one) => !notRun(one)), ...found.filter(notRun)];
  const body = el("div", {});
  const verdicts = [...new Set(claims.map((one) => one.verdict))];
  const count = (verdict) => claims.filter((one) => one.verdict === verdict).length;
  const draw = (wanted) => fill(body, table(["claim", "verdict", "difference", "n", "why"],
    claims.filter((one) => !wanted || one.verdict === wanted).map(rowOf), "claims with their verdicts"));
  const choice = select([["", `all ${claims.length}`], ...verdicts.map((one) => [one, `${one} (${count(one)})`])], "", draw);
  fill(main, el("h1", {}, "Claims"),
    el("p", {class: "under"}, "What this field says about itself, each with the verdict of its runs. ",
      el("a", {class: "data", href: dataOf("claims"), target: "_blank", rel: "noopener"}, "data of the claims")),
    el("div", {class: "controls"}, labelled("Verdict", choice)), body);
  draw("");
}

function rowOf(one) {
  const more = [["claimed", one.claimed], ["check", one.check], ["control", one.control], ["left open", one.beyond],
    ["run at", [one.size, ...(one.common || [])].filter(Boolean).join(" ")], ["on", (one.devices || []).join(", ")], ["notes", (one.notes || []).join("; ")],
    ...Object.entries(one.figures || {}).map(([name, value]) => [name, written(value)])].filter(([, value]) => value);
  const known = Object.keys(SIGNS).find((word) => String(one.verdict).startsWith(word));
  return [
    el("div", {class: "claim"}, el("small", {class: "tag"}, named(`${one.system} · ${one.id}`)), named(one.claim),
      folded("details", () => el("dl", {class: "facts one"}, more.map(([name, value]) => el("div", {}, el("dt", {}, named(name)), el("dd", {}, named(value))))))),
    el("span", {class: `verdict verdict-${(known || "other").replace(" ", "-")}`}, el("span", {"aria-hidden": "true"}, `${SIGNS[known] || "·"} `), named(one.verdict)),
    difference(one), one.n === null ? "–" : String(one.n), named(one.reason),
  ];
}

const signed = (value) => (value > 0 ? "+" : "") + short(value).replace("-", "−");

function difference(one) {
  if (one.difference === null || one.difference === undefined) return "–";
  if (one.low === null || one.high === null || one.low === one.high) return `${short(one.difference)} ${one.unit}`;
  return el("span", {}, `${signed(one.difference)} ${one.unit}`, el("small", {class: "tag"}, `${signed(one.low)} … ${signed(one.high)}`));
}

function written(value) {
  if (Array.isArray(value)) {
    const [first, ...ends] = value.map(written);
    return ends.length === 2 ? `${first} (${ends.join(" … ")})` : [first, ...ends].join(" … ");
  }
  return typeof value === "number" ? short(value) : value === null ? "" : String(value);
}
