// The flow table: every conversation, the ones that have just ended, and those that were refused and why.

import * as api from "./api.js";
import { $, el, text, show, options } from "./dom.js";
import { bytes, rate, number, span, clock, size, plain } from "./format.js";
import { Grid } from "./grid.js";
import { state, guestName, looked } from "./state.js";

const keptOver = 2000; // ended and refused ones that are still shown: minutes of a busy guest

const flows = new Map(); // by network/id
let over = [];           // the keys of those that have ended or were refused, oldest first
let total = 0;

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

// put takes a flow as the daemon shows it. at is when, for rates.
export function put(s, at) {
  const k = `${s.network ?? ""}/${s.id}`;
  let f = flows.get(k);
  if (!f) {
    f = { key: k, up: 0, down: 0, rate: 0, at, opened: Date.parse(s.opened), first: true };
    flows.set(k, f);
  }
  const up = s.up_bytes ?? 0, down = s.down_bytes ?? 0, passed = (at - f.at) / 1000;
  if (!f.first && passed > 0.2) {
    f.rate = Math.max(0, up - f.up + down - f.down) / passed;
    f.at = at;
    f.up = up; f.down = down;
  } else if (f.first) {
    f.up = up; f.down = down;
  }
  f.first = false;
  f.s = s;
  const st = stateOf(s);
  if (st !== f.state) {
    if (st === "ended" || st === "refused") { over.push(k); f.rate = 0; f.overAt = at; }
    f.state = st;
  }
  if (f.state === "ended") { f.up = up; f.down = down; }
  f.seen = at;
  f.target = target(s);
  f.network = s.network ?? "";
  f.text = ""; // made when it is searched
  return f;
}

// quieten ends the rates of those of which nothing was heard: nothing moved.
function quieten(at) {
  for (const f of flows.values()) if (f.rate && at - f.seen > 2500) f.rate = 0;
}

// only keeps those that the daemon still has, of a whole list; the rest have ended, how was not said.
export function only(at) {
  for (const f of flows.values()) {
    if (f.seen !== at && f.state !== "ended" && f.state !== "refused") {
      f.state = "ended";
      f.rate = 0;
      f.overAt = at;
      over.push(f.key);
    }
  }
}

export function forget() {
  flows.clear();
  over = [];
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
  total = flows.size - over.length;
  text($("n-flows"), total ? number(total) : "");
  if (state.view !== "flows") return;
  options($("flow-guest"), [...state.guests.values()].filter(looked).map(g => [`${g.network ?? ""}/${g.id}`, g.name ? `${g.name} (${g.id})` : g.id]), 1);
  if (held && !anyway) return;
  if (!held || anyway) {
    const passes = filterOf($("flow-filter").value), guest = $("flow-guest").value, st = $("flow-state").value;
    const list = [];
    for (const f of flows.values()) {
      if (!looked(f) || guest && `${f.network}/${f.s.guest}` !== guest) continue;
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
    ["Guest", `${guestName(s.network, s.guest)}${state.guests.get(`${f.network}/${s.guest}`)?.name ? ` (${s.guest})` : ""}`],
    s.network && ["Network", s.network],
    ["State", f.state + (s.waits ? `: waits for ${s.waits === "hello" ? "the guest’s first bytes" : "an answer to the policy’s question"}` : "")],
    reason && ["Why", reason + (because(reason) ? `: ${because(reason)}` : "")],
    s.policy_rule && ["Rule", s.policy_rule],
    ["Protocol", `${s.proto}, ${s.direction === "in" ? "from the host in" : "from the guest out"}`],
    ["From", s.src], ["To", s.dst],
    s.host && ["On the host", s.host],
    s.rule && ["Forward", s.rule],
    s.name && ["Names itself", s.name + (s.hello ? ` (${s.hello})` : "")],
    s.names?.length && ["Looked up as", s.names.join(", ")],
    ["Sent", `${bytes(f.up)} in ${number(s.up_packets)}`], ["Received", `${bytes(f.down)} in ${number(s.down_packets)}`],
    ["Rate", rate(f.rate)],
    ["Began", clock(f.opened)],
    s.ended && ["Ended", clock(s.ended)],
    f.state !== "ended" && f.state !== "refused" && ["Idle", span((s.idle_ms ?? 0) / 1000)],
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

// Where they come from.

let streaming = null;

// run keeps the table fresh until signal: by the stream if the daemon has one, else by asking.
export async function run(wanted) {
  for (;;) {
    if (!wanted()) { await sleep(300); continue; }
    try {
      const at = Date.now();
      const list = await api.get("flows");
      for (const s of list) put(s, at);
      only(at);
      draw();
    } catch { /* the page says so */ }
    await sleep(flows.size > 3000 ? 2000 : 1000);
  }
}

const sleep = ms => new Promise(r => setTimeout(r, ms));
