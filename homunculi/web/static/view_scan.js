// The brain scan of a typed text: surprise, signals by token, attention, what each step would say.

import {act} from "./api.js";
import {needsToken, runChoice, stepChoice} from "./asking.js";
import {alertOf, checkbox, el, fill, folded, labelled, named, select, table} from "./dom.js";
import {frame, heatmap, visible} from "./figures.js";
import {figure as short} from "./numbers.js";
import {marked} from "./panels.js";

const MOST_LENS = 64;

export async function show(main, query, signal, about) {
  const step = stepChoice();
  const choice = await runChoice("Run", query.get("run"), signal, (key) => step.load(key, signal));
  const text = el("textarea", {rows: 4, maxlength: about.limits.text, value: "One morning Mina found a red box in the garden, but it was empty."});
  const changes = el("input", {type: "text", placeholder: "none, or such as depth=2", maxlength: 2000});
  const other = el("textarea", {rows: 2, maxlength: about.limits.text});
  const status = el("p", {class: "note", role: "status"}), found = el("div", {id: "found"});
  const button = el("button", {type: "submit", class: "primary", disabled: !about.acts}, "Scan");
  const stop = el("button", {type: "button", disabled: true, on: {click: () => going?.abort()}}, "Stop");
  let going = null, data = null, ends = new Map(), keeps = false;
  const release = () => { if (data) URL.revokeObjectURL(data); };
  signal.addEventListener("abort", () => { going?.abort(); release(); });

  async function scan(event) {
    event.preventDefault();
    going?.abort();
    const mine = going = new AbortController();
    stop.disabled = false;
    fill(status, "Scanning; the first scan of a run loads its model …");
    try {
      const words = changes.value.trim() ? changes.value.trim().split(/\s+/) : [];
      const asked = {run: choice.value(), step: step.value(), text: text.value, changes: words, patch_text: other.value || null};
      const result = await act("scan", asked, mine.signal);
      fill(status, `${result.tokens.length} tokens at step ${result.step}.`);
      release();
      data = URL.createObjectURL(new Blob([JSON.stringify(result)], {type: "application/json"}));
      ends = endsOf(result, keeps ? ends : new Map());
      drawScan(found, result, data, ends);
    } catch (error) {
      if (error.name === "AbortError") { if (going === mine) fill(status, "Stopped."); }
      else if (going === mine) { fill(status); fill(found, alertOf(error.message)); }
    }
    if (going === mine) stop.disabled = true;
  }

  const changing = () => el("div", {}, labelled("Changes, separated by spaces", changes, "PATTERN=neutral:NUMBER, =scaled:NUMBER, =shuffled or =patched; REGION=silenced; depth=N"),
    labelled("Other text, for =patched", other, "what passes these taps is what passed while this was read; as many tokens as the text above"));
  fill(main, el("h1", {}, "Scan"), el("p", {class: "under"}, "What happens inside a model while it reads a text, token by token."), needsToken(about),
    el("form", {on: {submit: scan}}, el("div", {class: "controls"}, choice.field, step.field),
      labelled("Text", text, `at most ${about.limits.text.toLocaleString("en")} characters`),
      folded("change the model first", changing),
      checkbox("keep the colours of the scan before, to compare runs, checkpoints or changes", false, (on) => { keeps = on; }),
      el("div", {class: "bar"}, button, stop), status), found);
  if (choice.value()) await step.load(choice.value(), signal);
}

// The ends of each panel's colours: those that are kept, or its own.
function endsOf(scan, kept) {
  const all = new Map(kept);
  for (const panel of scan.panels || []) if (!all.has(panel.name)) all.set(panel.name, {low: panel.low, high: panel.high});
  return all;
}

function drawScan(out, scan, data, ends) {
  const tokens = scan.tokens.map((one) => one.text);
  const surprise = scan.tokens.map((one) => one.surprisal);
  fill(out,
    el("div", {class: "titled"}, el("h2", {}, "Surprise"), el("a", {class: "data", href: data, download: "scan.json"}, "data of the scan")),
    (scan.changes || []).length > 0 && el("p", {class: "note"}, "Changed: ", el("code", {}, scan.changes.join(" "))),
    marked(tokens, surprise, "nats"),
    (scan.notes || []).map((note) => el("p", {class: "note"}, named(note))));
  const parts = [];
  if (scan.panels?.length) {
    parts.push(el("h2", {}, "Signals by token"));
    for (const panel of scan.panels) parts.push(panelOf({...panel, ...ends.get(panel.name)}, tokens, data));
  }
  if (scan.attention?.length) parts.push(el("h2", {}, "Attention"), attentionOf(scan.attention, tokens, data));
  if (scan.lens?.length) parts.push(el("h2", {}, "What each step would say"), ...lensOf(scan.lens, tokens, data));
  if (scan.lens?.some((one) => one.up?.length)) parts.push(el("h2", {}, "Which step moved which word"), movedOf(scan.lens, tokens));
  out.append(...parts);
}

// A figure whose numbers are among those of the scan.
function scanFrame(title, data) {
  const made = frame(title, {data});
  made.link.setAttribute("download", "scan.json");
  return made;
}

function panelOf(panel, tokens, data) {
  const made = scanFrame(panel.title || panel.name, data);
  queueMicrotask(() => heatmap(made.plot, {title: panel.title, values: panel.values, rows: panel.rows, columns: tokens, unit: panel.unit,
    low: panel.low, high: panel.high, neutral: panel.neutral}));
  return made.figure;
}

function attentionOf(attention, tokens, data) {
  const state = {place: 0, head: 0};
  const made = scanFrame("Who looks at whom", data);
  const heads = el("span", {});
  const draw = () => {
    const one = attention[state.place];
    state.head = Math.min(state.head, one.values.length - 1);
    fill(heads, labelled("Head", select(one.values.map((_, at) => [String(at), `head ${at + 1}`]), String(state.head), (at) => { state.head = Number(at); draw(); })));
    heatmap(made.plot, {title: `${one.label}, head ${state.head + 1}`, values: one.values[state.head], rows: tokens, columns: tokens,
      xTitle: "is looked at", yTitle: "looks", unit: "share", low: 0, height: Math.min(640, 160 + 14 * tokens.length)});
  };
  const where = select(attention.map((one, place) => [String(place), one.label || one.name]), "0", (place) => { state.place = Number(place); draw(); });
  queueMicrotask(draw);
  return el("div", {}, el("div", {class: "controls"}, labelled("Where", where), heads), made.figure);
}

function lensOf(lens, tokens, data) {
  const made = scanFrame("Rank of the true next token (1 is best), by ratio", data);
  const ranks = lens.map((one) => one.rank.map((rank) => rank === null ? null : Math.log10(rank)));
  const tops = Math.max(1, ...ranks.flat().filter((one) => one !== null));
  queueMicrotask(() => heatmap(made.plot, {title: "rank", values: ranks, rows: lens.map((one) => one.label), columns: tokens, unit: "rank", low: 0, high: tops,
    ticks: Array.from({length: Math.floor(tops) + 1}, (_, power) => [power, (10 ** power).toLocaleString("en")])}));
  const shown = tokens.slice(0, MOST_LENS);
  const rows = shown.map((token, at) => [el("code", {}, visible(token)), ...lens.map((one) => {
    const [word, p] = one.words[at]?.[0] || ["–", null];
    const rest = (one.words[at] || []).slice(1).map(([other, q]) => `${visible(other)} ${short(q)}`).join(", ");
    return el("span", {title: rest}, el("code", {}, visible(word)), p !== null && el("small", {class: "tag"}, `p ${short(Number(p.toFixed(3)))}, rank ${one.rank[at] ?? "–"}`));
  })]);
  const cut = tokens.length > MOST_LENS && el("p", {class: "note"}, `The first ${MOST_LENS} of ${tokens.length} tokens.`);
  return [made.figure, folded("likeliest next tokens", () => el("div", {}, table(["after", ...lens.map((one) => named(one.label))], rows, "likeliest next tokens"), cut), true)];
}

// The words that each step raised and lowered most after one token, on bars as long as the largest of the column allows.
function movedOf(lens, tokens) {
  const out = el("div", {class: "moves"});
  const draw = (at) => {
    const came = tokens[at + 1];
    const [most, least] = ["up", "down"].map((kind) => Math.max(1e-9, ...lens.flatMap((one) => (one[kind]?.[at] || []).map(([, change]) => Math.abs(change)))));
    const rows = lens.map((one) => {
      const [word, p] = one.words[at]?.[0] || ["–", null];
      return [named(one.label), barsOf(one.up?.[at], "up", most, came), barsOf(one.down?.[at], "down", least, came),
        el("span", {}, el("code", {}, visible(word)), p !== null && el("small", {}, ` ${(100 * p).toFixed(0)} %`))];
    });
    fill(out, table(["step", "raised", "lowered", "then the likeliest was"], rows,
      came === undefined ? "after the last token" : `after ${visible(tokens[at])}; then came ${visible(came)}`));
  };
  const gain = (at) => lens.reduce((sum, one) => sum + (one.up?.[at]?.[0]?.[1] || 0), 0);
  const near = tokens.slice(0, 8).map((_, at) => gain(at));
  const first = near.indexOf(Math.max(...near));
  draw(first);
  const chosen = select(tokens.map((token, at) => [String(at), `${at} ${visible(token)}`]), String(first), (at) => draw(Number(at)));
  return el("div", {}, el("p", {class: "note"}, "In percentage points; what a word loses may be spread over many. A state that is itself a distribution over words is ",
    "read as what it is; of any other this is a lens, and an early state may hold more than it shows. ✓: the word that came."),
  el("div", {class: "controls"}, labelled("After token", chosen)), out);
}

function barsOf(words, kind, most, came) {
  if (!words?.length) return "–";
  return el("div", {}, words.map(([word, change]) => {
    const bar = el("div", {class: word === came ? `${kind} came` : kind}, el("code", {}, visible(word)), ` ${points(change)}`);
    bar.style.setProperty("--part", `${(100 * Math.abs(change) / most).toFixed(0)}%`);
    return bar;
  }));
}

function points(change) {
  const size = 100 * Math.abs(change);
  return `${change > 0 ? "+" : "−"}${size.toFixed(size >= 9.95 ? 0 : 1)}`;
}
