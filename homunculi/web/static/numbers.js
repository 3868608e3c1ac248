// Numbers as people read them; null and absent values are a dash.

const there = (value) => typeof value === "number" && Number.isFinite(value);

export const exact = (value) => there(value) ? value.toLocaleString("en", {maximumFractionDigits: 3}) : "–";

export function brief(value) {
  if (!there(value)) return "–";
  const size = Math.abs(value);
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= scale * 0.9995) return `${Number((value / scale).toPrecision(3))}\u00a0${suffix}`;
  }
  return String(Number(value.toPrecision(3)));
}

export function decimals(value) {
  if (!there(value)) return "–";
  const size = Math.abs(value);
  return size === 0 || (size >= 0.01 && size < 100) ? value.toFixed(3) : Number(value.toPrecision(4)).toString();
}

export const figure = (value) => there(value) ? String(Number(value.toPrecision(4))) : "–";

export function since(seconds) {
  if (!there(seconds)) return "–";
  const gone = Math.max(0, Date.now() / 1000 - seconds);
  for (const [size, word] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (gone >= size) {
      const count = Math.floor(gone / size);
      return `${count} ${word}${count > 1 ? "s" : ""} ago`;
    }
  }
  return "just now";
}

export const moment = (seconds) => there(seconds)
  ? new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "–";
