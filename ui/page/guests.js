// The guests: who is plugged in, how fast their bytes go, and what was dropped for which reason.

import * as api from "./api.js";
import { $, el, text, show } from "./dom.js";
import { bytes, number, plain, rate, since } from "./format.js";
import { state, guestKey, looked, where } from "./state.js";

const kept = 60;      // seconds of a sparkline
const mostCards = 200; // beyond it a filter finds guests faster than eyes

const history = new Map(); // by key: {at, rx, tx, sent: [], got: []}
const cards = new Map();
let limits = new Map();    // by key: hits

// sample takes a fresh list of guests.
export function sample(list, at) {
  const now = new Map();
  for (const g of list) {
    const k = guestKey(g.network, g.id);
    now.set(k, g);
    const h = history.get(k);
    if (!h) {
      history.set(k, { at, rx: g.rx_bytes, tx: g.tx_bytes, sent: [], got: [] });
      continue;
    }
    const passed = (at - h.at) / 1000;
    if (passed < 0.5) continue;
    // A page that slept has one sample for all that time, in as many places.
    for (let i = Math.min(kept, Math.max(1, Math.round(passed))); i > 0; i--) {
      h.sent.push(Math.max(0, g.rx_bytes - h.rx) / passed);
      h.got.push(Math.max(0, g.tx_bytes - h.tx) / passed);
    }
    h.sent.splice(0, h.sent.length - kept);
    h.got.splice(0, h.got.length - kept);
    h.at = at; h.rx = g.rx_bytes; h.tx = g.tx_bytes;
  }
  for (const k of history.keys()) if (!now.has(k)) history.delete(k);
  state.guests = now;
}

export function setLimits(list) {
  limits = new Map();
  for (const l of list) {
    if (!l.guest || !l.hits) continue;
    const k = guestKey(l.network, l.guest);
    limits.set(k, [...(limits.get(k) ?? []), l]);
  }
}

const svg = (tag, attrs) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  return e;
};

// A sparkline is two lines of the last minute on one scale: what the guest sent, and what it received.
class Spark {
  constructor() {
    this.fill = svg("path", { class: "spark-fill" });
    this.got = svg("path", { class: "spark-got" });
    this.sent = svg("path", { class: "spark-sent" });
    this.node = svg("svg", { class: "spark", viewBox: "0 0 120 32", preserveAspectRatio: "none", role: "img" });
    this.node.append(svg("path", { class: "spark-base", d: "M0 31.5H120" }), this.fill, this.got, this.sent);
  }
  draw(h, name) {
    const top = Math.max(1000, ...h.sent, ...h.got) * 1.05; // below a kilobyte a second it is quiet
    const line = list => list.map((v, i) => `${i ? "L" : "M"}${(120 - (list.length - 1 - i) * 120 / (kept - 1)).toFixed(1)} ${(31 - v / top * 30).toFixed(1)}`).join("");
    const got = line(h.got);
    this.got.setAttribute("d", got);
    this.sent.setAttribute("d", line(h.sent));
    this.fill.setAttribute("d", h.got.length > 1 ? `${got}L120 32L${(120 - (h.got.length - 1) * 120 / (kept - 1)).toFixed(1)} 32Z` : "");
    this.node.setAttribute("aria-label", plain(`${name} in the last minute: sent at most ${rate(Math.max(0, ...h.sent))}, received at most ${rate(Math.max(0, ...h.got))}`));
  }
}

class Card {
  constructor(k) {
    const id = "guest-" + k.replace(/[^A-Za-z0-9]/g, "-");
    this.spark = new Spark();
    this.name = el("h2", { id });
    this.tag = el("span", { class: "tag" });
    this.addrs = el("p", { class: "addrs" });
    this.sent = el("span", { class: "fig" });
    this.got = el("span", { class: "fig" });
    this.sum = el("p", { class: "small" });
    this.troubles = el("ul", { class: "troubles", "aria-label": "Dropped, and limits hit" });
    this.mac = el("dd"); this.mtu = el("dd"); this.link = el("dd"); this.since = el("dd"); this.frames = el("dd"); this.queue = el("dd");
    this.flows = el("a", { class: "button", href: "#flows" });
    this.away = el("button", { type: "button", class: "quiet", onclick: () => unplug(this.guest) }, "Unplug");
    this.node = el("article", { class: "card", "aria-labelledby": id },
      el("div", { class: "card-head" }, this.name, this.tag),
      this.addrs,
      el("div", { class: "rates" }, this.spark.node,
        el("div", { class: "figs" },
          el("span", { class: "sent" }, el("span", { class: "arrow", "aria-hidden": "true" }, "↑"), el("span", { class: "sr" }, "sends "), this.sent),
          el("span", { class: "got" }, el("span", { class: "arrow", "aria-hidden": "true" }, "↓"), el("span", { class: "sr" }, "receives "), this.got))),
      this.sum, this.troubles,
      el("details", null, el("summary", null, "Card and wire"),
        el("dl", null, [["MAC", this.mac], ["MTU", this.mtu], ["Link", this.link], ["Plugged in", this.since], ["Frames", this.frames], ["Waiting", this.queue]]
          .map(([n, dd]) => [el("dt", null, n), dd]))),
      el("div", { class: "card-end" }, this.flows, this.away));
  }

  draw(g, h) {
    this.guest = g;
    const name = g.name || g.id;
    text(this.name, name);
    text(this.tag, (g.name ? g.id : "") + (state.networks.length > 1 && g.network ? `${g.name ? ", " : ""}${g.network}` : ""));
    text(this.addrs, g.addresses.length ? g.addresses.join("  ") : "no address yet");
    const sent = h.sent.at(-1) ?? 0, got = h.got.at(-1) ?? 0;
    text(this.sent, rate(sent));
    text(this.got, rate(got));
    this.node.classList.toggle("idle", sent < 1 && got < 1);
    this.spark.draw(h, name);
    text(this.sum, `${bytes(g.rx_bytes)} sent, ${bytes(g.tx_bytes)} received`);
    const hits = limits.get(guestKey(g.network, g.id)) ?? [];
    const troubles = [
      ...Object.entries(g.dropped ?? {}).filter(([, n]) => n > 0).map(([why, n]) => `dropped ${why} ${number(n)}`),
      ...hits.map(l => `limit ${l.name} (${l.text}) hit ${number(l.hits)}×`),
    ];
    while (this.troubles.children.length > troubles.length) this.troubles.lastChild.remove();
    while (this.troubles.children.length < troubles.length) this.troubles.append(el("li"));
    troubles.forEach((t, i) => text(this.troubles.children[i], t));
    show(this.troubles, troubles.length > 0);
    text(this.mac, g.mac || "not seen yet");
    text(this.mtu, g.mtu ? number(g.mtu) : "not known yet");
    text(this.link, g.link);
    text(this.since, since(g.since) + " ago");
    text(this.frames, `${number(g.rx_frames)} sent, ${number(g.tx_frames)} received`);
    text(this.queue, `${bytes(g.queued_bytes)} of ${bytes(g.queue_limit)} for the guest to read`);
    text(this.flows, `${number(g.flows)} flow${g.flows === 1 ? "" : "s"}`);
    const to = `#flows?guest=${encodeURIComponent(g.id)}`;
    if (this.flows.getAttribute("href") !== to) this.flows.setAttribute("href", to);
    this.flows.setAttribute("aria-label", plain(`${number(g.flows)} flows of ${name}`));
    this.away.setAttribute("aria-label", plain(`Unplug ${name}`));
  }
}

let tell = () => {};

async function unplug(g) {
  try {
    await api.change("DELETE", "guests/" + encodeURIComponent(g.id), { query: where(g.network) });
    tell(`${g.name || g.id} was unplugged; it comes back if its VMM connects again.`);
  } catch (e) {
    tell(String(e));
  }
}

const orders = {
  name: (a, b) => (a.name || a.id).localeCompare(b.name || b.id, "en", { numeric: true }),
  flows: (a, b) => b.flows - a.flows,
  new: (a, b) => Date.parse(b.since) - Date.parse(a.since),
  rate: (a, b) => rateOf(b) - rateOf(a),
};
const rateOf = g => {
  const h = history.get(guestKey(g.network, g.id));
  return (h?.sent.at(-1) ?? 0) + (h?.got.at(-1) ?? 0);
};

export function setup(toast) {
  tell = toast;
  $("guest-filter").addEventListener("input", draw);
  $("guest-sort").addEventListener("change", draw);
}

export function draw() {
  const all = [...state.guests.values()].filter(looked);
  text($("n-guests"), all.length ? number(all.length) : "");
  if (state.view !== "guests") return;
  const word = $("guest-filter").value.trim().toLowerCase();
  let list = all.filter(g => !word || `${g.name ?? ""} ${g.id} ${g.mac ?? ""} ${g.addresses.join(" ")} ${g.link} ${g.network ?? ""}`.toLowerCase().includes(word));
  list.sort(orders.name);
  if ($("guest-sort").value !== "name") list.sort(orders[$("guest-sort").value]);
  const found = list.length;
  list = list.slice(0, mostCards);
  let sent = 0, got = 0;
  for (const g of all) {
    const h = history.get(guestKey(g.network, g.id));
    sent += h?.sent.at(-1) ?? 0;
    got += h?.got.at(-1) ?? 0;
  }
  text($("totals"), all.length ? `${number(all.length)} plugged in, ↑ ${rate(sent)}, ↓ ${rate(got)}${found > mostCards ? `; the first ${mostCards} are shown` : ""}` : "");
  show($("guest-none"), list.length === 0);
  text($("guest-none"), all.length ? "No guest is like that." : "No guest is plugged in. Status says where they can be.");
  const gone = new Set(cards.keys());
  const box = $("guest-cards");
  let after = null;
  for (const g of list) {
    const k = guestKey(g.network, g.id);
    gone.delete(k);
    let c = cards.get(k);
    if (!c) cards.set(k, c = new Card(k));
    c.draw(g, history.get(k) ?? { sent: [], got: [] });
    const at = after ? after.nextSibling : box.firstChild;
    if (at !== c.node) {
      const focused = c.node.contains(document.activeElement) ? document.activeElement : null;
      box.insertBefore(c.node, at);
      focused?.focus();
    }
    after = c.node;
  }
  for (const k of gone) {
    cards.get(k).node.remove();
    cards.delete(k);
  }
}
