// Elements from names, attributes and children. Text is always a text node: nothing from a file becomes markup.

// Characters that act instead of showing themselves: controls, direction marks, lone halves of pairs.
const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]/g;

export function inert(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const whole = text.toWellFormed ? text.toWellFormed() : text;
  return whole.replace(ACTING, (one) => `⟨${one.charCodeAt(0).toString(16).padStart(2, "0")}⟩`);
}

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [kind, act] of Object.entries(value)) made.addEventListener(kind, act);
    else if (name === "value" || name === "checked" || name === "disabled") made[name] = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  add(made, children);
  return made;
}

export function add(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(inert(child)));
  }
  return parent;
}

export const fill = (parent, ...children) => { parent.replaceChildren(); return add(parent, children); };

// A name from a file: isolated, so that its direction of writing stays its own.
export const named = (text, attributes = {}) => el("bdi", attributes, text);

let counted = 0;
export const fresh = (stem) => `${stem}-${++counted}`;

// A control with its label. `inline`: beside instead of below it.
export function labelled(words, control, note) {
  control.id = control.id || fresh("field");
  return el("div", {class: "field"}, el("label", {for: control.id}, words), control, note && el("small", {}, note));
}

export function select(options, chosen, act) {
  const made = el("select", {on: {change: () => act(made.value)}});
  for (const [value, words] of options) made.append(el("option", {value, selected: value === chosen}, words));
  return made;
}

export function checkbox(words, checked, act) {
  const box = el("input", {type: "checkbox", checked, on: {change: () => act(box.checked)}});
  return el("label", {class: "tick"}, box, words);
}

// rows: lists of cells (text or nodes); the first cell of a row names it.
export function table(heads, rows, caption) {
  const top = el("tr", {}, heads.map((head) => el("th", {scope: "col"}, head)));
  const body = rows.map(([first, ...others]) =>
    el("tr", {}, el("th", {scope: "row"}, first), others.map((cell) => el("td", {}, cell))));
  const inner = el("table", {}, caption && el("caption", {}, caption), el("thead", {}, top), el("tbody", {}, body));
  return el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption || heads[0] || "table"}, inner);
}

export const alertOf = (words) => el("p", {class: "alert", role: "alert"}, words);

export function folded(summary, make, open = false) {
  const made = el("details", {open}, el("summary", {}, summary));
  let filled = false;
  const unfold = () => {
    if (made.open && !filled) { filled = true; add(made, [make()]); }
  };
  made.addEventListener("toggle", unfold);
  unfold();
  return made;
}
