// What happened, newest first, as it happens.

import * as api from "./api.js";
import { $, el, text, show, options, save, Sheet } from "./dom.js";
import { number, clock } from "./format.js";
import { state, guestName, looked } from "./state.js";

const kept = 2000;   // as many as the daemon keeps
const drawn = 300;   // as many as eyes read

const list = [];     // oldest first
const ids = new Set();
const kinds = new Set();
let sheet, lost = 0, missed = 0, last = "";

export function setup() {
  sheet = new Sheet($("event-table"), "Events", [
    { name: "Time", cls: "mono when", text: e => clock(e.time) },
    { name: "Kind", cls: "kind", fill: (td, e) => { td.append(el("span", { class: "tag k-" + e.kind.replace(/[^a-z-]/g, "") }, e.kind)); } },
    { name: "Guest", fill(td, e) {
      if (e.guest) td.append(el("a", { href: `#flows?guest=${encodeURIComponent(e.guest)}` }, guestName(e.network, e.guest)));
    } },
    { name: "What", cls: "what", text: what },
  ], "Nothing has happened yet.");
  $("event-filter").addEventListener("input", draw);
  $("event-kind").addEventListener("change", draw);
  $("event-save").addEventListener("click", () => {
    save(new Blob([list.map(e => JSON.stringify(e) + "\n").join("")], { type: "application/jsonl" }), "vmnetd-events.jsonl");
  });
}

// what is said of an event, once each.
function what(e) {
  const said = e.text ?? "", has = s => said.includes(s);
  return [
    e.subject && !e.kind.startsWith("forward-") && !has(e.subject) && e.subject,
    said,
    e.reason && !has(e.reason) && `(${e.reason})`,
    e.count > 1 && !has("times") && `${number(e.count)} times`,
    e.missed && `and ${number(e.missed)} more of these before`,
  ].filter(Boolean).join(" ");
}

let waiting = 0;
const later = () => { if (!waiting) waiting = setTimeout(() => { waiting = 0; draw(); }, 150); };

// run follows the events until the page ends. heard is called for each one that is new.
export async function run(heard) {
  for (;;) {
    try {
      await api.follow("events", { lastID: last }, (kind, e, id) => {
        if (kind === "lost") { lost += e.lost; return; }
        if (ids.has(e.id)) return;
        if (id) last = id;
        ids.add(e.id);
        list.push(e);
        while (list.length > kept) ids.delete(list.shift().id);
        kinds.add(e.kind);
        if (state.view !== "events") missed++;
        later();
        heard(e);
      });
    } catch { /* the page says so, where it matters */ }
    await new Promise(r => setTimeout(r, 2000));
  }
}

export function draw() {
  if (state.view === "events") missed = 0;
  text($("n-events"), missed ? number(missed) : "");
  if (state.view !== "events") return;
  options($("event-kind"), [...kinds].sort().map(k => [k, k]), 1);
  const kind = $("event-kind").value, word = $("event-filter").value.trim().toLowerCase();
  const found = [];
  for (let i = list.length - 1; i >= 0 && found.length < drawn; i--) {
    const e = list[i];
    if (!looked(e) || kind && e.kind !== kind) continue;
    if (word && !`${e.kind} ${e.guest ?? ""} ${guestName(e.network, e.guest)} ${e.subject ?? ""} ${e.text} ${e.reason ?? ""}`.toLowerCase().includes(word)) continue;
    found.push(e);
  }
  sheet.set(found, e => e.id);
  text($("event-totals"), `${number(found.length)} of ${number(list.length)} shown${lost ? `; ${number(lost)} are missing, since they were not read in time` : ""}`);
}
