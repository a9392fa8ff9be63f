// The flow table: every conversation, the ones that have just ended, and those that were refused and why.

import * as api from "./api.js";
import { $, el, text, show, options } from "./dom.js";
import { bytes, rate, number, span, clock, size, plain } from "./format.js";
import { Grid } from "./grid.js";
import { state, guestKey, guestOf, guestName, looked } from "./state.js";

const keptOver = 2000; // ended and refused ones that are still shown: minutes of a busy guest

const flows = new Map(); // by network/id
let over = [];           // the keys of those that have ended or were refused, oldest first
let listing = 0;         // grows with each list of all that there are

// why says in words what the closed list of reasons says in one.
const why = {
  "policy": "a rule of the policy says no",
  "host-loopback": "the host’s own ports are closed to guests (--no-host-loopback)",
  "door": "guests plug in there; a guest may not be two",
  "outside-routes": "the network leads only to its routes",
  "link-local": "link-local addresses are the host’s: cloud metadata lives there",
  "martian": "that is never a destination",
  "on-link": "an address of this network that nobody has",
  "flow-limit": "the guest, or the daemon, has as many flows as it may",
  "no-guest": "the forward’s guest is not there",
  "name": "the policy does not let the guest resolve that name",
  "rebinding": "a public name with a private address",
  "other-name": "its first bytes named somebody else than the policy let in",
  "unanswered": "the policy asked, and nobody answered in time",
  "flow-rate": "more new flows a second than the guest may begin",
  "refused": "the far side refused it",
  "unreachable": "there is no way to it",
  "timeout": "the far side did not answer",
  "reset": "one side reset it",
  "closed": "both sides finished",
  "idle": "nothing moved for long",
  "evicted": "it made room for a newer one",
  "exhausted": "the host is out of descriptors or ports",
  "memory": "the daemon is at its memory target",
  "guest-gone": "the guest’s wire ended",
  "shutdown": "the network was closed",
};

export const because = reason => why[reason] ?? "";

const key = f => f.key;

// Of a dial that failed and one that was not let in, people want to know the same: that there is no way, and why.
function stateOf(s) {
  if (s.verdict === "refused") return "refused";
  if (s.ended || s.state === "closed") return "ended";
  return s.state;
}

// target is whom the flow is with, as people know it.
function target(s) {
  const name = s.name || s.names?.[0];
  if (s.direction === "in") return s.rule ? `← ${s.rule}` : `← ${s.src}`;
  const port = /:(\d+)$/.exec(s.dst)?.[1] ?? "";
  if (name) return port === "0" ? name : `${name}:${port}`;
  return s.dst.replace(/:0$/, "");
}

// put takes a flow as the daemon shows it.
function put(s, at) {
  const k = `${s.network ?? ""}/${s.id}`;
  let f = flows.get(k);
  if (!f) flows.set(k, f = { key: k, network: s.network ?? "", opened: Date.parse(s.opened), rate: 0, rated: 0, state: "" });
  const up = s.up_bytes ?? 0, down = s.down_bytes ?? 0;
  f.up = up; f.down = down; f.upPackets = s.up_packets; f.downPackets = s.down_packets;
  f.last = at - (s.idle_ms ?? 0);
  f.listing = listing;
  f.s = s;
  const st = stateOf(s);
  if (st !== f.state && (st === "ended" || st === "refused")) {
    over.push(k);
    f.rate = 0;
  }
  f.state = st;
  f.target = target(s);
  f.text = ""; // made when it is searched
}

// moved takes the figures of flows whose bytes have moved in the last second.
const ticks = new Map();
function moved(network, list, at) {
  const passed = Math.min(1.5, Math.max(0.5, (at - (ticks.get(network) ?? 0)) / 1000)); // it is told once a second, if at all
  ticks.set(network, at);
  for (const [id, up, down, upPackets, downPackets] of list) {
    const f = flows.get(`${network}/${id}`);
    if (!f || f.state === "ended") continue;
    f.rate = Math.max(0, up - f.up + down - f.down) / passed;
    f.rated = f.last = at;
    f.up = up; f.down = down; f.upPackets = upPackets; f.downPackets = downPackets;
  }
}

// quieten ends the rates of those of which nothing was heard: nothing moved.
function quieten(at) {
  for (const f of flows.values()) if (f.rate && at - f.rated > 2500) f.rate = 0;
}

export function forget() {
  flows.clear();
  over = [];
  place = "";
}

function trim() {
  while (over.length > keptOver) flows.delete(over.shift());
}

// The filter.

function words(f) {
  const s = f.s, who = guestName(s.network, s.guest);
  return `${who} ${s.guest} ${s.proto} ${s.direction} ${s.src} ${s.dst} ${s.host ?? ""} ${f.target} ${s.name ?? ""} ${(s.names ?? []).join(" ")} ${f.state} ${s.reason ?? ""} ${s.policy_rule ?? ""} ${s.rule ?? ""} ${s.network ?? ""}`.toLowerCase();
}

const fields = {
  guest: f => `${f.s.guest} ${guestName(f.s.network, f.s.guest)}`,
  proto: f => f.s.proto,
  state: f => f.state,
  dir: f => f.s.direction,
  direction: f => f.s.direction,
  name: f => `${f.s.name ?? ""} ${(f.s.names ?? []).join(" ")}`,
  reason: f => f.s.reason ?? "",
  rule: f => `${f.s.policy_rule ?? ""} ${f.s.rule ?? ""}`,
  src: f => f.s.src,
  dst: f => f.s.dst,
  net: f => f.s.network ?? "",
};
const figures = { bytes: f => f.up + f.down, up: f => f.up, down: f => f.down, rate: f => f.rate };

// filterOf makes a test of what was typed.
export function filterOf(typed) {
  const tests = [];
  for (let word of typed.toLowerCase().split(/\s+/).filter(Boolean)) {
    let not = false;
    if (word.length > 1 && word[0] === "-") { not = true; word = word.slice(1); }
    let m, test;
    if ((m = /^(bytes|up|down|rate)([<>])(.+)$/.exec(word)) && !Number.isNaN(size(m[3]))) {
      const of = figures[m[1]], n = size(m[3]);
      test = m[2] === ">" ? f => of(f) > n : f => of(f) < n;
    } else if ((m = /^port:(\d+)$/.exec(word))) {
      const end = ":" + m[1];
      test = f => f.s.dst.endsWith(end) || f.s.src.endsWith(end);
    } else if ((m = /^(\w+):(.+)$/.exec(word)) && Object.hasOwn(fields, m[1])) {
      const of = fields[m[1]], v = m[2];
      test = m[1] === "guest" ? f => of(f).toLowerCase().split(" ").includes(v) || of(f).toLowerCase().startsWith(v) : f => of(f).toLowerCase().includes(v);
    } else {
      test = f => (f.text ||= words(f)).includes(word);
    }
    tests.push(not ? f => !test(f) : test);
  }
  return f => tests.every(t => t(f));
}

// What is seen.

const columns = [
  { id: "guest", name: "Guest", cls: "c-guest", full: true, text: f => guestName(f.s.network, f.s.guest), sort: f => guestName(f.s.network, f.s.guest).toLowerCase() },
  { id: "proto", name: "Proto", cls: "c-proto", text: f => f.s.proto, sort: f => f.s.proto },
  { id: "name", name: "With", cls: "c-name", full: true, text: f => f.target, sort: f => f.target.toLowerCase() },
  { id: "state", name: "State", cls: "c-state", full: true, text: f => f.state === "refused" || f.state === "ended" ? `${f.state}${f.s.reason ? ": " + f.s.reason : ""}` : f.s.waits ? `${f.state}, waits` : f.state, sort: f => f.state },
  { id: "up", name: "Sent", cls: "num c-up", down: true, text: f => bytes(f.up), sort: f => f.up },
  { id: "down", name: "Received", cls: "num c-down", down: true, text: f => bytes(f.down), sort: f => f.down },
  { id: "bytes", name: "Bytes", cls: "num c-bytes", down: true, text: f => bytes(f.up + f.down), sort: f => f.up + f.down },
  { id: "rate", name: "Rate", cls: "num c-rate", down: true, text: f => f.rate >= 1 ? rate(f.rate) : "", sort: f => f.rate },
  { id: "age", name: "Age", cls: "num c-age", text: f => span((Date.now() - f.opened) / 1000).split(" ").slice(0, 2).join(" "), sort: f => -f.opened },
];

let grid, held = false, opened = null, shown = [];

export function setup() {
  grid = new Grid($("flow-grid"), "Flows", columns, { key, open, state: f => f.state });
  for (const c of columns) $("flow-sort").add(new Option("by " + c.name.toLowerCase(), c.id));
  $("flow-sort").addEventListener("change", e => grid.sortBy(e.target.value));
  grid.onsort = () => { $("flow-sort").value = grid.by.id; draw(true); };
  grid.sortBy("rate");
  let typing;
  $("flow-filter").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => draw(true), 80); });
  $("flow-guest").addEventListener("change", () => draw(true));
  $("flow-state").addEventListener("change", () => draw(true));
  $("flow-pause").addEventListener("click", pause);
  $("flow-detail").addEventListener("click", e => { if (e.target.closest(".close")) close(); });
}

export function pause() {
  held = !held;
  $("flow-pause").setAttribute("aria-pressed", held);
  text($("flow-pause"), held ? "Go on" : "Pause");
  draw(true);
}

// only the flows of a guest, as the guests' links want them
export function ofGuest(id) {
  $("flow-filter").value = id ? "guest:" + id : "";
  $("flow-guest").value = "";
  $("flow-state").value = "";
  draw(true);
}

export function draw(anyway) {
  trim();
  quieten(Date.now());
  const live = flows.size - over.length;
  text($("n-flows"), live ? number(live) : "");
  if (state.view !== "flows") return;
  options($("flow-guest"), [...state.guests.values()].filter(looked).map(g => [guestKey(g.network, g.id), g.name ? `${g.name} (${g.id})` : g.id]), 1);
  if (held && !anyway) return;
  if (!held || anyway) {
    const passes = filterOf($("flow-filter").value), guest = $("flow-guest").value, st = $("flow-state").value;
    const list = [];
    for (const f of flows.values()) {
      if (!looked(f) || guest && guestKey(f.network, f.s.guest) !== guest && guestKey("", f.s.guest) !== guest) continue;
      if (st === "live" ? f.state === "ended" || f.state === "refused" : st && f.state !== st) continue;
      if (passes(f)) list.push(f);
    }
    shown = grid.sorted(list);
  }
  grid.set(shown);
  let sum = 0;
  for (const f of shown) sum += f.rate;
  text($("flow-totals"), flows.size === 0 ? "None yet. Conversations of guests appear here as they begin."
    : `${number(shown.length)} of ${number(flows.size)} shown${held ? ", held still" : sum >= 1 ? ", " + rate(sum) : ""}`);
  if (opened) detail(opened);
}

// The one that is looked at.

function open(f) {
  opened = f;
  show($("flow-detail"), true);
  $("view-flows").classList.add("detailed");
  detail(f);
}

export function close() {
  if (!opened) return false;
  opened = null;
  show($("flow-detail"), false);
  $("view-flows").classList.remove("detailed");
  grid.root.focus();
  return true;
}

let detailOf, cells;
function detail(f) {
  const s = f.s, reason = s.reason ?? "";
  const lines = [
    ["Guest", `${guestName(s.network, s.guest)}${guestOf(f.network, s.guest)?.name ? ` (${s.guest})` : ""}`],
    state.networks.length > 1 && ["Network", s.network],
    ["State", f.state + (s.waits ? `: waits for ${s.waits === "hello" ? "the guest’s first bytes" : "an answer to the policy’s question"}` : "")],
    reason && ["Why", reason + (because(reason) ? `: ${because(reason)}` : "")],
    s.policy_rule && ["Rule", s.policy_rule],
    ["Protocol", `${s.proto}, ${s.direction === "in" ? "from the host in" : "from the guest out"}`],
    ["From", s.src], ["To", s.dst],
    s.host && ["On the host", s.host],
    s.rule && ["Forward", s.rule],
    s.name && ["Names itself", s.name + (s.hello ? ` (${s.hello})` : "")],
    s.names?.length && ["Looked up as", s.names.join(", ")],
    ["Sent", `${bytes(f.up)} in ${number(f.upPackets)}`], ["Received", `${bytes(f.down)} in ${number(f.downPackets)}`],
    ["Rate", rate(f.rate)],
    ["Began", clock(f.opened)],
    s.ended && ["Ended", clock(s.ended)],
    f.state !== "ended" && f.state !== "refused" && ["Idle", span((Date.now() - f.last) / 1000)],
    s.missed && ["Like it", `${number(s.missed)} more of this guest’s, which are not shown`],
  ].filter(Boolean);
  const shape = f.key + lines.map(l => l[0]).join();
  if (detailOf !== shape) {
    detailOf = shape;
    cells = lines.map(() => el("dd"));
    $("flow-detail").replaceChildren(
      el("div", { class: "detail-head" }, el("h2", null, plain(f.target)), el("button", { type: "button", class: "quiet close", "aria-label": "Close the flow’s details" }, "Close")),
      el("dl", null, lines.map((l, i) => [el("dt", null, l[0]), cells[i]])));
  }
  lines.forEach((l, i) => text(cells[i], l[1]));
}

// Where they come from: a stream that begins with all that there are and goes on with what becomes of them. A tab that
// nobody looks at follows nothing; it goes on where it was if it is back soon.

let place = "";

function heard(kind, e, id) {
  if (id) place = id;
  const at = Date.now();
  switch (kind) {
    case "anew": listing++; break;
    case "flows": for (const s of e.flows) put(s, at); break;
    case "opened": case "changed": case "ended": case "refused": put(e.flow, at); break;
    case "bytes": moved(e.network, e.moved, at); break;
    case "listed":
      // What is not among them ended while nobody listened; how, those say that have lately ended.
      for (const f of flows.values()) if (f.listing !== listing && f.state !== "ended" && f.state !== "refused") flows.delete(f.key);
      lately();
      break;
    default: return;
  }
  later();
}

async function lately() {
  try {
    const at = Date.now();
    const list = await api.get("flows", { state: "closed" });
    for (const s of list) {
      s.network ??= state.networks[0] ?? "";
      if (!flows.has(`${s.network}/${s.id}`)) put(s, at);
    }
    later();
  } catch { /* they are not needed */ }
}

// later draws soon, and the less often the longer it takes.
let waiting = 0, cost = 0, drawnAt = 0;
function later() {
  if (waiting) return;
  waiting = setTimeout(() => {
    waiting = 0;
    const began = performance.now();
    draw();
    drawnAt = performance.now();
    cost = drawnAt - began;
  }, Math.max(50, drawnAt + Math.min(2000, 250 + 10 * cost) - performance.now()));
}

export async function run() {
  setInterval(later, 1000); // ages, and rates that end
  for (;;) {
    const stop = new AbortController();
    const hide = () => { if (document.hidden) stop.abort(); };
    document.addEventListener("visibilitychange", hide);
    try {
      if (!document.hidden) await api.follow("flows", { lastID: place, signal: stop.signal }, heard);
    } catch { /* the page says so */ }
    document.removeEventListener("visibilitychange", hide);
    if (document.hidden) await new Promise(r => document.addEventListener("visibilitychange", r, { once: true }));
    else await new Promise(r => setTimeout(r, 1000));
  }
}
