// Questions to the server. Reading needs nothing; acting carries the token of the printed address.

const KEPT = "homunculi-token";

// The token stands behind the # of the printed address, which browsers never send; it is kept for this tab.
export function takeToken() {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  try { sessionStorage.setItem(KEPT, found[1]); } catch { /* without storage this tab only reads */ }
  history.replaceState(null, "", "#/");
}

function headers() {
  let token = null;
  try { token = sessionStorage.getItem(KEPT); } catch { /* as above */ }
  return token ? {"X-Homunculi-Token": token} : {};
}

export function address(path, query = {}) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined) words.append(name, one);
  }
  const text = words.toString();
  return text ? `${path}?${text}` : path;
}

export const dataOf = (name, query) => address(`/api/${name}`, query);
export const viewOf = (name, query) => address(`#/${name}`, query);

async function failure(answer) {
  try { return new Error((await answer.json()).error || `status ${answer.status}`); }
  catch { return new Error(`the server answered with status ${answer.status}`); }
}

export async function read(name, query = {}, signal = undefined) {
  let answer;
  try { answer = await fetch(dataOf(name, query), {headers: headers(), signal}); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is homunculi serve still running?");
  }
  if (!answer.ok) throw await failure(answer);
  return answer.json();
}

// Asks the desk; `piece` gets text as it comes; the result is returned.
export async function act(name, asked, signal, piece = () => {}) {
  const answer = await fetch(`/api/${name}`, {
    method: "POST", signal, body: JSON.stringify(asked),
    headers: {...headers(), "Content-Type": "application/json"},
  });
  if (!answer.ok) throw await failure(answer);
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let parts = [], result = null;
  const take = (line) => {
    if (!line.trim()) return;
    let said;
    try { said = JSON.parse(line); } catch { throw new Error("the desk's answer cannot be read"); }
    if (said.error) throw new Error(said.error);
    if (said.piece !== undefined) piece(said.piece);
    if (said.result !== undefined) result = said.result;
  };
  for (;;) {
    const {value, done} = await reader.read();
    const lines = (value ? decoder.decode(value, {stream: true}) : "").split("\n");
    parts.push(lines[0]);
    if (lines.length > 1) {
      take(parts.join(""));
      lines.slice(1, -1).forEach(take);
      parts = [lines.at(-1)];
    }
    if (done) break;
  }
  take(parts.join(""));
  if (result === null) throw new Error("the desk gave no result");
  return result;
}

// Calls `again` every so many milliseconds until the view is left; pauses while the tab is hidden.
export function repeat(again, pause, signal) {
  let timer;
  const next = async () => {
    if (!document.hidden) {
      try { await again(); } catch (error) { if (error.name === "AbortError") return; }
    }
    if (!signal.aborted) timer = setTimeout(next, pause());
  };
  timer = setTimeout(next, pause());
  signal.addEventListener("abort", () => clearTimeout(timer));
}
