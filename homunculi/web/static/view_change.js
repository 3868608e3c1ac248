// Signals, regions and depth under sliders; the text is written anew with every change, beside the unchanged one.

import {act} from "./api.js";
import {needsToken, runChoice, textOf, writing} from "./asking.js";
import {alertOf, el, fill, labelled, named, select} from "./dom.js";
import {figure as short} from "./numbers.js";
import {continuation} from "./view_write.js";

const PAUSE_MS = 350;

export async function show(main, query, signal, about) {
  const state = {going: null, timer: null, plain: null, plainOf: "", plainGoing: null, controls: []};
  const knobs = el("div", {class: "knobs"}), changed = el("div", {class: "written", "aria-live": "polite"}), plain = el("div", {class: "written"});
  const status = el("p", {class: "note", role: "status"}), words = el("code", {});
  const how = writing(about.limits, () => later());
  const choice = await runChoice("Run", query.get("run"), signal, () => load());
  signal.addEventListener("abort", () => { clearTimeout(state.timer); state.going?.abort(); state.plainGoing?.abort(); });

  const changes = () => state.controls.map((one) => one.change()).filter((one) => one !== null);

  function later() {
    clearTimeout(state.timer);
    state.going?.abort();
    if (about.acts) state.timer = setTimeout(write, PAUSE_MS);
  }

  async function write() {
    state.going = new AbortController();
    const mine = state.going.signal, asked = {run: choice.value(), ...how.value()}, wanted = changes();
    fill(words, wanted.join(" ") || "nothing is changed");
    fill(status, "Writing …");
    try {
      const unchanged = await plainOf(asked);
      if (mine.aborted) return;
      const text = wanted.length ? await told(asked, wanted, changed, mine) : unchanged;
      fill(changed, compared(asked.text, unchanged, text));
      fill(status, text === unchanged ? "Both texts are the same." : "The underlined part differs from the unchanged text.");
    } catch (error) {
      if (error.name !== "AbortError") { fill(changed, alertOf(error.message)); fill(status); }
    }
  }

  // The unchanged text: written once for a prompt, and not given up when a slider moves meanwhile.
  function plainOf(asked) {
    const same = JSON.stringify(asked);
    if (state.plainOf !== same) {
      state.plainGoing?.abort();
      state.plainGoing = new AbortController();
      state.plainOf = same;
      state.plain = told(asked, [], plain, state.plainGoing.signal);
      state.plain.catch(() => { if (state.plainOf === same) state.plainOf = ""; });
    }
    return state.plain;
  }

  async function told(asked, wanted, out, cancelled) {
    let said = "";
    const result = await act("sample", {...asked, changes: wanted}, cancelled, (piece) => { said += piece; fill(out, textOf(asked.text, said)); });
    said = continuation(said, result);
    fill(out, textOf(asked.text, said));
    return said;
  }

  async function load() {
    clearTimeout(state.timer);
    state.going?.abort();
    state.plainOf = "";
    fill(knobs, el("p", {class: "note"}, about.acts ? "Loading the model …" : "Its sliders appear when this tab may act."));
    if (!about.acts || choice.value() === null) return;
    const key = choice.value();
    try {
      const found = await act("signals", {run: key}, signal);
      if (key !== choice.value()) return;
      state.controls = [...(found.signals || []).map((one) => signalKnob(one, later)),
        ...(found.regions || []).map((one) => regionKnob(one, later)), ...(found.parts || []).map((name) => partKnob(name, later)), ...(found.depth ? [depthKnob(found.depth, later)] : [])];
      const empty = !state.controls.length && el("p", {class: "note"}, "This model has nothing to change here.");
      fill(knobs, empty, state.controls.map((one) => one.field));
      await write();
    } catch (error) {
      if (error.name !== "AbortError") fill(knobs, alertOf(error.message));
    }
  }

  const reset = el("button", {type: "button", on: {click: () => { state.controls.forEach((one) => one.reset()); later(); }}}, "Change nothing");
  fill(main, el("h1", {}, "Change"), el("p", {class: "under"}, "Hold a signal, silence a region, choose the depth: what does it write then?"), needsToken(about),
    el("form", {on: {submit: (event) => { event.preventDefault(); later(); }}}, choice.field, how.fields,
      el("div", {class: "columns"},
        el("section", {"aria-label": "what is changed"}, el("h2", {}, "Changes"), knobs, reset),
        el("section", {}, el("h2", {}, "Changed"), el("p", {class: "note"}, words), changed, status, el("h2", {}, "Unchanged"), plain))));
  await load();
}

// What the changed text has from its first difference on is underlined.
function compared(prompt, plain, text) {
  let same = 0;
  while (same < text.length && text[same] === plain[same]) same += 1;
  return el("pre", {}, prompt && el("mark", {}, prompt), named(text.slice(0, same)), same < text.length && el("ins", {}, named(text.slice(same))));
}

function knob(title, modes, range, act) {
  const out = el("output", {});
  const slider = el("input", {type: "range", min: range.low, max: range.high, step: (range.high - range.low) / 100, value: range.start,
    "aria-label": `value of ${title}`, on: {input: () => { if (mode.value === modes[0][0]) mode.value = modes[1][0]; update(); act(); }}});
  const mode = select(modes, modes[0][0], () => { update(); act(); });
  const update = () => {
    const used = range.modes.includes(mode.value);
    fill(out, used ? short(Number(slider.value)) : "");
    slider.classList.toggle("unused", !used);
  };
  update();
  return {
    field: el("div", {class: "knob"}, labelled(named(title), mode), slider, out),
    mode: () => mode.value,
    value: () => short(Number(slider.value)),
    reset: () => { mode.value = modes[0][0]; slider.value = range.start; update(); },
  };
}

function signalKnob(one, act) {
  const low = one.low ?? 0, high = one.high ?? 2, neutral = one.neutral ?? 1;
  const made = knob(one.title || one.pattern, [["own", "as it is"], ["held", "held at"], ["scaled", "scaled by"], ["shuffled", "shuffled among tokens"]],
    {low, high, start: neutral, modes: ["held", "scaled"]}, act);
  const change = () => ({own: null, held: `${one.pattern}=neutral:${made.value()}`, scaled: `${one.pattern}=scaled:${made.value()}`,
    shuffled: `${one.pattern}=shuffled`})[made.mode()];
  return {...made, change};
}

function regionKnob(one, act) {
  const silent = one.value ?? 0;
  const made = knob(one.name || one.pattern, [["own", "as it is"], ["scaled", "scaled by"], ["silent", "silenced"], ["shuffled", "shuffled among tokens"]],
    {low: 0, high: 2, start: 1, modes: ["scaled"]}, act);
  const change = () => ({own: null, scaled: `${one.pattern}=scaled:${made.value()}`, silent: `${one.pattern}=neutral:${silent}`,
    shuffled: `${one.pattern}=shuffled`})[made.mode()];
  return {...made, change};
}

// A part of several signals: all of them held where they do nothing.
const partKnob = (name, act) => choiceKnob(name, [["silenced", "silenced"]], (one) => `${name}=${one}`, act);

const depthKnob = (depths, act) => choiceKnob("depth", depths.map((one) => [String(one), String(one)]), (one) => `depth=${one}`, act);

function choiceKnob(title, options, change, act) {
  const choice = select([["", "as it is"], ...options], "", act);
  return {
    field: el("div", {class: "knob"}, labelled(named(title), choice)),
    change: () => choice.value === "" ? null : change(choice.value),
    reset: () => { choice.value = ""; },
  };
}
