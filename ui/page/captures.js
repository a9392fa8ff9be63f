// Captures of guests' wires, kept in the daemon's memory: begun, watched as they grow, stopped, fetched.

import * as api from "./api.js";
import { $, el, text, show, options, save, Sheet } from "./dom.js";
import { bytes, number, plain, span } from "./format.js";
import { state, guestName, looked, where } from "./state.js";

let sheet, tell = () => {}, soon = () => {};

const ends = { stopped: "stopped", size: "full", packets: "full", time: "its time is over", gone: "its guest has gone", failed: "failed" };
const encoded = r => "captures/" + encodeURIComponent(r.id);

export function setup(toast, refresh) {
  tell = toast;
  soon = refresh;
  sheet = new Sheet($("capture-table"), "Captures", [
    { name: "Capture", cls: "mono", text: r => r.id },
    { name: "Of", text: r => (r.guest ? guestName(r.network, r.guest) : "all guests") + (r.flow ? `, flow ${r.flow}` : "") },
    { name: "Filter", cls: "mono", text: r => r.filter ?? "" },
    { name: "State", text: r => r.running ? "running" : (ends[r.end] ?? r.end ?? "over") + (r.error ? `: ${r.error}` : "") },
    { name: "Time", cls: "num", text: r => span(((r.ended ? Date.parse(r.ended) : Date.now()) - Date.parse(r.started)) / 1000) },
    { name: "Packets", cls: "num", text: r => number(r.packets) + (r.dropped ? ` (${number(r.dropped)} missed)` : "") },
    { name: "Size", cls: "grows", fill(td) { td.append(el("span", { class: "num" }), el("progress", { max: 1, value: 0, "aria-hidden": "true" })); } },
    { name: "Actions", quiet: true, cls: "act", fill(td) {
      const act = (label, f) => el("button", { type: "button", class: "quiet", "data-does": label, onclick: e => once(e.target, () => f(td.parentElement.row)) }, label);
      td.append(
        act("Stop", r => api.change("POST", encoded(r) + "/stop", { query: where(r.network) })),
        act("Download", async r => save(await api.fetched("/v1/" + encoded(r) + "/file", "application/x-pcapng"), `${r.id}.pcapng`)),
        act("Forget", r => api.change("DELETE", encoded(r), { query: where(r.network) })));
    } },
  ], "No capture runs, and none is kept.");
  $("capture-form").addEventListener("submit", async e => {
    e.preventDefault();
    const f = e.target.elements, error = $("capture-error");
    const body = { filter: f.filter.value.trim(), max_bytes: Number(f.size.value) };
    let network = f.network.value;
    if (f.guest.value) [network, body.guest] = f.guest.value.split("\n");
    error.replaceChildren();
    f.filter.removeAttribute("aria-invalid");
    try {
      const c = await api.change("POST", "captures", { query: where(network), body });
      tell(`Capture ${c.id} runs.`);
    } catch (x) {
      f.filter.setAttribute("aria-invalid", "true");
      error.append(el("strong", null, x.message), x.hint ? el("span", null, " " + x.hint) : "");
      f.filter.focus();
    }
    soon();
  });
}

async function once(button, f) {
  button.disabled = true;
  try {
    await f();
  } catch (e) {
    tell(String(e));
  }
  button.disabled = false;
  soon();
}

const nav = () => document.querySelector('nav.views a[href="#captures"]');

export function tasks(every, seen) {
  every(2000, seen, async () => {
    let list;
    try {
      list = await api.get("captures");
    } catch (e) {
      if (e.status === 404) show(nav(), false); // a daemon without captures
      throw e;
    }
    show(nav(), true);
    list = list.filter(looked);
    const running = list.filter(r => r.running).length;
    text($("n-captures"), running ? number(running) : "");
    if (state.view !== "captures") return;
    options($("capture-guest"), [...state.guests.values()].filter(looked).map(g => [`${g.network ?? ""}\n${g.id}`, g.name ? `${g.name} (${g.id})` : g.id]), 1);
    sheet.set(list.reverse(), r => r.id);
    for (const tr of sheet.rows.values()) {
      const r = tr.row, size = r.bytes ?? 0;
      const [fig, bar] = tr.querySelector(".grows").children;
      text(fig, r.max_bytes ? `${bytes(size)} of ${bytes(r.max_bytes)}` : bytes(size));
      show(bar, Boolean(r.max_bytes) && r.running);
      bar.value = r.max_bytes ? Math.min(1, size / r.max_bytes) : 0;
      for (const b of tr.querySelectorAll("button")) {
        show(b, { Stop: r.running, Download: r.kept, Forget: r.kept && !r.running }[b.dataset.does]);
        b.setAttribute("aria-label", plain(`${b.dataset.does} capture ${r.id}`));
      }
    }
  });
}
