// Two runs continue the same prompt, side by side.

import {act} from "./api.js";
import {needsToken, runChoice, textOf, writing} from "./asking.js";
import {alertOf, el, fill} from "./dom.js";

export async function show(main, query, signal, about) {
  const asked = query.getAll("run");
  const left = await runChoice("Left run", asked[0], signal, () => {});
  const right = await runChoice("Right run", asked[1], signal, () => {});
  const how = writing(about.limits);
  const columns = [left, right].map((choice) => ({choice, out: el("div", {class: "written", "aria-live": "polite"})}));
  let going = null;
  const status = el("span", {class: "note", role: "status"});
  const stop = el("button", {type: "button", disabled: true, on: {click: () => going?.abort()}}, "Stop");
  const start = el("button", {type: "submit", class: "primary", disabled: !about.acts}, "Write");

  async function write(event) {
    event.preventDefault();
    going?.abort();
    going = new AbortController();
    const mine = going;
    signal.addEventListener("abort", () => mine.abort());
    stop.disabled = false;
    fill(status, "Writing …");
    await Promise.all(columns.map((column) => one(column, mine.signal)));
    if (going !== mine) return;
    fill(status, mine.signal.aborted ? "Stopped." : "Done.");
    stop.disabled = true;
  }

  async function one({choice, out}, cancelled) {
    const asked = {run: choice.value(), ...how.value()};
    let said = "";
    fill(out, el("p", {class: "note"}, "Waiting for the desk …"));
    try {
      const result = await act("sample", asked, cancelled, (piece) => { said += piece; fill(out, textOf(asked.text, said)); });
      fill(out, textOf(asked.text, continuation(said, result)));
    } catch (error) {
      if (error.name !== "AbortError") fill(out, said && textOf(asked.text, said), alertOf(error.message));
      else if (!said) fill(out);
    }
  }

  fill(main, el("h1", {}, "Write"), el("p", {class: "under"}, "Two runs continue the same prompt with the same seed."), needsToken(about),
    el("form", {on: {submit: write}}, how.fields,
      el("div", {class: "bar"}, start, stop, status),
      el("div", {class: "columns"}, columns.map(({choice, out}) => el("section", {}, choice.field, out)))));
}

// What was written: the pieces as they came, which the result repeats.
export const continuation = (pieces, result) => pieces || (typeof result.text === "string" ? result.text : "");
