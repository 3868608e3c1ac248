// What a run said, step by step.

import {dataOf, read} from "./api.js";
import {el, fill, folded, labelled, named} from "./dom.js";
import {exact} from "./numbers.js";

export async function samples(section, key, signal) {
  const seen = {all: [], steps: [], place: null};
  const out = el("output", {}), words = el("div", {class: "said", "aria-live": "polite"});
  const slider = el("input", {type: "range", min: 0, step: 1, on: {input: () => { seen.place = Number(slider.value); draw(); }}});
  const every = el("div", {});
  const title = [el("h2", {}, "What it says"), el("a", {class: "data", href: dataOf("samples", {run: key}), target: "_blank", rel: "noopener"}, "data of the samples")];

  function draw() {
    const place = seen.place ?? seen.steps.length - 1;
    const step = seen.steps[place];
    slider.max = Math.max(0, seen.steps.length - 1);
    slider.value = place;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    fill(out, `step ${exact(step)}`);
    fill(words, seen.all.filter((one) => one.step === step).map((one) => sample(one)));
  }

  async function refresh() {
    const {samples: found} = await read("samples", {run: key}, signal);
    if (found.length && found.length === seen.all.length && found.at(-1).step === seen.all.at(-1).step) return;  // of many the last come
    seen.all = found;
    seen.steps = [...new Set(found.map((one) => one.step))].sort((a, b) => a - b);
    if (!found.length) { fill(section, title[0], el("p", {class: "note"}, "No samples yet.")); return; }
    if (!section.contains(slider)) {
      fill(section, el("div", {class: "titled"}, title),
        el("div", {class: "controls"}, labelled("Step of training", slider), out), words, every);
    }
    const open = every.firstChild?.open || false;
    fill(every, folded(`all ${found.length} samples`, () => el("div", {class: "said"}, seen.all.map((one) => sample(one, true))), open));
    draw();
  }
  await refresh();
  return {refresh};
}

function sample(one, withStep = false) {
  const how = [withStep ? `step ${exact(one.step)}` : null, one.temperature === null ? null : `temperature ${one.temperature}`,
    one.seed === null ? null : `seed ${one.seed}`].filter(Boolean).join(", ");
  return el("article", {}, el("p", {class: "kicker"}, one.prompt ? "continues the prompt" : "begins by itself", how && ` · ${how}`),
    el("pre", {}, one.prompt && el("mark", {}, one.prompt), named(one.text)));
}
