// The daemon and its networks.

import * as api from "./api.js";
import { $, el, text, save } from "./dom.js";
import { number, since, plain } from "./format.js";
import { state } from "./state.js";
import { because } from "./flows.js";

export function setup(toast) {
  $("metrics-save").addEventListener("click", async () => {
    try {
      save(await api.fetched("/metrics"), "vmnetd-metrics.txt");
    } catch (e) {
      toast(String(e));
    }
  });
}

const list = (lines, cls) => el("dl", { class: cls ?? "facts" }, lines.filter(l => l && l[1] !== "" && l[1] != null)
  .map(([k, v]) => [el("dt", null, k), el("dd", null, Array.isArray(v) ? v.map(x => el("div", null, x)) : v)]));

let drawn = "";
export function draw(st) {
  text($("status-totals"), `vmnetd ${st.version}, pid ${st.pid}`);
  // Only what changed, or a selection would be lost each time.
  const now = JSON.stringify([state.network, { ...st, networks: st.networks.map(n => ({ ...n, tick: Math.floor(Date.now() / 60000) })) }]);
  if (now === drawn) return;
  drawn = now;
  const panels = [];
  panels.push(el("section", { class: "panel", "aria-label": "Daemon" }, el("h2", null, "Daemon"), list([
    ["Version", st.version], ["Process", String(st.pid)],
    ["Guests plug in at", st.listen],
    ["Sandbox", st.sandbox ? [st.sandbox.walls, ...(st.sandbox.missing ?? []).map(m => "lacks " + m)] : "not told"],
  ])));
  for (const n of st.networks) {
    if (state.network && n.name !== state.network) continue;
    panels.push(el("section", { class: "panel", "aria-label": plain("Network " + n.name) }, el("h2", null, `Network ${n.name}`),
      n.warnings?.length ? el("ul", { class: "warnings" }, n.warnings.map(w => el("li", null, w))) : null,
      list([
        ["IPv4", `${n.prefix4}, gateway ${n.gateway4}, DNS ${n.dns4}`],
        ["IPv6", `${n.prefix6}, gateway ${n.gateway6}, DNS ${n.dns6}${n.ipv6_router ? "" : "; this host has no IPv6 route, guests get no default route"}`],
        ["MTU", `${n.mtu}${n.large_mtu ? `, ${n.large_mtu} for cards that carry it` : ""}`],
        ["Gateway’s MAC", n.gateway_mac],
        n.isolate && ["Isolated", "guests are kept from one another"],
        n.strict_leases && ["Strict leases", "guests send as what they were given only"],
        n.routes && ["Routes", n.routes.join(", ")],
        ["Resolvers", (n.resolvers ?? []).join(", ")],
        ["Ping", n.ping4 === n.ping6 ? n.ping4 : [`IPv4: ${n.ping4}`, `IPv6: ${n.ping6}`]],
        ["Running", since(n.since)],
        ["Flows", `${number(n.flows)} now, ${number(n.flows_total)} ever`],
      ]),
      reasons(n.reasons)));
  }
  $("status-body").replaceChildren(...panels);
}

function reasons(all) {
  const there = Object.entries(all ?? {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  if (!there.length) return null;
  return el("table", { class: "reasons" }, el("caption", null, "How flows ended and what was dropped, by reason"),
    el("tbody", null, there.map(([r, n]) => el("tr", null, el("th", { scope: "row" }, r), el("td", { class: "num" }, number(n)), el("td", null, because(r))))));
}
