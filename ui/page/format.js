// Figures and texts as people read them.

const units = ["B", "kB", "MB", "GB", "TB"];

export function bytes(n) {
  if (!(n >= 0)) return "–";
  let u = 0;
  while (n >= 999.5 && u < units.length - 1) { n /= 1000; u++; }
  return (u === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(1)) + " " + units[u];
}

export const rate = n => bytes(n) + "/s";

export const number = n => (n ?? 0).toLocaleString("en");

// span is how long something takes, in its two largest units.
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + " s";
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

export const since = t => t ? span((Date.now() - Date.parse(t)) / 1000) : "–";

const two = n => String(n).padStart(2, "0");

export function clock(t) {
  const d = new Date(t);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  if (d.toDateString() === new Date().toDateString()) return time;
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${time}`;
}

// plain is a text that may be a guest's: what is not seen, or would turn the line around, is shown as what it is.
const unseen = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
export const plain = s => String(s ?? "").replace(unseen, "\ufffd");

// size reads "10", "64k", "1.5M".
export function size(text) {
  const m = /^([\d.]+)([kmgt]?)i?b?$/i.exec(text);
  if (!m) return NaN;
  return Number(m[1]) * 1000 ** ["", "k", "m", "g", "t"].indexOf(m[2].toLowerCase());
}
