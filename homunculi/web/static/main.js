// Which view is shown: the part of the address behind the #.

import {read, takeToken} from "./api.js";
import {alertOf, el, fill} from "./dom.js";
import {forget} from "./figures.js";

const VIEWS = {
  "": {title: "Runs", file: "./view_runs.js"},
  run: {title: "Run", file: "./view_run.js", hidden: true},
  compare: {title: "Compare", file: "./view_compare.js"},
  scan: {title: "Scan", file: "./view_scan.js"},
  write: {title: "Write", file: "./view_write.js"},
  change: {title: "Change", file: "./view_change.js"},
  claims: {title: "Claims", file: "./view_claims.js"},
};

export const about = {acts: false, folder: "", limits: {text: 8000, tokens: 1000, runs: 64}};
let leaving = new AbortController();

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return {name: path in VIEWS ? path : "", query: new URLSearchParams(query)};
}

async function show(first = false) {
  if (location.hash === "#content") return;
  leaving.abort();
  leaving = new AbortController();
  const {signal} = leaving;
  const {name, query} = route();
  const view = VIEWS[name];
  const main = document.getElementById("content");
  document.title = `${view.title} · homunculi`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  forget(signal);
  fill(main, el("p", {class: "note"}, "Reading …"));
  try {
    const {show: open} = await import(view.file);
    if (signal.aborted) return;
    await open(main, query, signal, about);
    if (!first && !signal.aborted) main.focus({preventScroll: true});
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) fill(main, el("h1", {}, view.title), alertOf(error.message));
  }
  main.dataset.ready = name || "runs";
}

async function begin() {
  takeToken();
  const nav = document.getElementById("views");
  for (const [name, view] of Object.entries(VIEWS)) {
    if (!view.hidden) nav.append(el("a", {href: `#/${name}`, "data-view": name}, view.title));
  }
  try { Object.assign(about, await read("page")); } catch { /* the view says it */ }
  const access = document.getElementById("access");
  fill(access, about.acts ? "reading and acting" : "reading only");
  access.title = about.acts ? "This tab holds the token" : "Open the address that homunculi serve printed to scan and write";
  window.addEventListener("hashchange", () => {
    if (location.hash.startsWith("#token=")) { takeToken(); location.reload(); } else show();
  });
  await show(true);
}

begin();
