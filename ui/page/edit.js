// What can be changed: forwards, DNS records, leases, and the questions that a policy asks.

import * as api from "./api.js";
import { $, el, text, show, options, Sheet } from "./dom.js";
import { bytes, number, clock, plain } from "./format.js";
import { state, guestName, looked, where } from "./state.js";

let toast = () => {};
let soon = () => {}; // asks for the lists again

// busy keeps a form from being sent twice, and shows what became of it.
async function send(form, error, what) {
  const button = form.querySelector("button[type=submit]");
  if (button.getAttribute("aria-busy") === "true") return false;
  button.setAttribute("aria-busy", "true");
  refuse(form, error, null);
  try {
    await what();
    return true;
  } catch (e) {
    refuse(form, error, e);
    form.querySelector("input").focus();
    return false;
  } finally {
    button.removeAttribute("aria-busy");
    soon();
  }
}

function refuse(form, error, e) {
  error.replaceChildren();
  for (const i of form.querySelectorAll("input")) {
    if (e) i.setAttribute("aria-invalid", "true");
    else i.removeAttribute("aria-invalid");
  }
  if (!e) return;
  error.append(el("strong", null, e.message));
  if (e.hint) error.append(" ", el("span", null, e.hint));
}

// remover is a cell with a button that does it, and undoes it.
const remover = (label, name, can, remove, again) => ({
  name: label, quiet: true, cls: "act",
  fill(td) {
    const tr = () => td.parentElement.row;
    const b = el("button", { type: "button", class: "quiet" }, label);
    b.addEventListener("click", async () => {
      const row = tr();
      b.disabled = true;
      try {
        await remove(row);
        toast(`${label === "Release" ? "Released" : "Removed"} ${name(row)}.`, again && (() => again(row)));
      } catch (e) {
        toast(String(e));
      }
      b.disabled = false;
      soon();
    });
    td.append(b);
  },
  text: null, can, label, nameOf: name,
});

// after a sheet was filled: which of its buttons there are, and their names for those who do not see the row.
function buttons(sheet) {
  const c = sheet.columns.at(-1);
  for (const tr of sheet.rows.values()) {
    const b = tr.querySelector("button");
    show(b, c.can(tr.row));
    b.setAttribute("aria-label", plain(`${c.label} ${c.nameOf(tr.row)}`));
  }
}

let forwards, records, own, leases;

const presence = { present: "there", absent: "away", unknown: "not known" };
export function setup(told, refresh) {
  toast = told;
  soon = refresh;
  forwards = new Sheet($("forward-table"), "Forwards", [
    { name: "Forward", cls: "mono", text: r => r.text },
    { name: "Guest", text: r => presence[r.guest] ?? r.guest ?? "" },
    { name: "State", text: r => r.state + (r.last_error ? `: ${r.last_error}` : "") },
    { name: "Open", cls: "num", text: r => number(r.active) },
    { name: "Accepted", cls: "num", text: r => number(r.accepted) },
    { name: "Refused", cls: "num", text: r => r.refused ? number(r.refused) + (r.reasons ? ` (${Object.keys(r.reasons).join(", ")})` : "") : "0" },
    { name: "In", cls: "num", text: r => bytes(r.bytes_to_guest) },
    { name: "Out", cls: "num", text: r => bytes(r.bytes_to_client) },
    remover("Remove", r => r.text, () => true,
      r => api.change("DELETE", "forwards/" + encodeURIComponent(r.id), { query: where(r.network) }),
      r => api.change("POST", "forwards", { query: where(r.network), body: { rule: r.text } })),
  ], "No port leads to a guest yet.");
  $("forward-form").addEventListener("submit", async e => {
    e.preventDefault();
    const f = e.target, rule = f.elements.rule.value.trim();
    if (await send(f, $("forward-error"), async () => {
      const added = await api.change("POST", "forwards", { query: where(f.elements.network.value), body: { rule } });
      toast("Added " + added.map(a => a.text).join(", ") + ".");
    })) f.elements.rule.value = "";
  });

  const record = [
    { name: "Name", cls: "mono", text: r => r.name.replace(/\.$/, "") },
    { name: "Type", text: r => r.type },
    { name: "Value", cls: "mono", text: r => r.value },
    { name: "TTL", cls: "num", text: r => `${r.ttl} s` },
    { name: "From", text: r => ({ builtin: "the gateway", admin: "added", lease: "a lease" })[r.source] ?? r.source },
  ];
  own = new Sheet($("dns-own-table"), "The gateway’s own records", record, "There is none.");
  records = new Sheet($("dns-table"), "DNS records", [...record,
    remover("Remove", r => `${r.name.replace(/\.$/, "")} ${r.type} ${r.value}`, r => r.source !== "builtin" && r.source !== "lease",
      r => api.change("DELETE", "dns", { query: { ...where(r.network), name: r.name, type: r.type, value: r.value } }),
      r => api.change("POST", "dns", { query: where(r.network), body: { name: r.name, type: r.type, value: r.value, ttl: r.ttl } })),
  ], "No name was added, and no guest has leased under one.");
  $("dns-form").addEventListener("submit", async e => {
    e.preventDefault();
    const f = e.target, v = n => f.elements[n].value.trim();
    const body = { name: v("name"), type: v("type"), value: v("value") };
    if (await send(f, $("dns-error"), () => api.change("POST", "dns", { query: where(f.elements.network.value), body }))) {
      toast(`Added ${body.name} ${body.type} ${body.value}.`);
      f.elements.name.value = f.elements.value.value = "";
      f.elements.name.focus();
    }
  });

  leases = new Sheet($("lease-table"), "Leases", [
    { name: "Address", cls: "mono", text: r => r.addr },
    { name: "Name", text: r => r.name || r.hostname || "" },
    { name: "MAC", cls: "mono", text: r => r.mac },
    { name: "Guest", text: r => r.guest ? guestName(r.network, r.guest) + (r.away ? " (gone)" : "") : "" },
    { name: "State", text: r => r.state + (r.static ? ", static" : "") },
    { name: "Until", text: r => r.static && !r.expires ? "" : clock(r.expires) },
    remover("Release", r => r.addr, r => r.state !== "static",
      r => api.change("DELETE", "leases/" + encodeURIComponent(r.addr), { query: where(r.network) })),
  ], "No address has been given out yet.");
}

const netKey = r => r.network ?? "";

export function setForwards(list) {
  list = list.filter(looked);
  text($("n-forwards"), list.length ? number(list.length) : "");
  forwards.set(list, r => netKey(r) + " " + r.id);
  buttons(forwards);
}

export function setRecords(list) {
  list = list.filter(looked);
  const key = r => [netKey(r), r.name, r.type, r.value, r.source].join(" ");
  const builtin = list.filter(r => r.source === "builtin");
  text($("dns-own-name"), `The gateway’s own, ${number(builtin.length)}`);
  own.set(builtin, key);
  // What somebody added first: it is what they look for.
  records.set([...list.filter(r => r.source === "admin"), ...list.filter(r => r.source !== "admin" && r.source !== "builtin")], key);
  buttons(records);
}

export function setLeases(list) {
  list = list.filter(looked);
  text($("n-names"), list.length ? number(list.length) : "");
  leases.set(list, r => [netKey(r), r.addr, r.mac, r.client_id, r.iaid].join(" "));
  buttons(leases);
}

// A daemon with several networks has to be told which is meant.
export function setNetworks(names) {
  for (const label of document.querySelectorAll("label.which")) {
    show(label, names.length > 1);
    const select = label.querySelector("select");
    options(select, names.map(n => [n, n]));
    if (state.network) select.value = state.network;
  }
}

// Questions are answered where they are seen, which is everywhere.
const questions = new Map();

export function setQuestions(list) {
  list = list.filter(q => !q.outcome).slice(0, 20); // more nobody answers one by one
  const box = $("asks");
  const gone = new Set(questions.keys());
  for (const q of list) {
    const k = `${q.network}/${q.id}`;
    gone.delete(k);
    let e = questions.get(k);
    if (!e) {
      const answer = (verdict, scope) => async () => {
        for (const b of e.querySelectorAll("button")) b.disabled = true;
        try {
          await api.change("POST", "policy/questions/" + q.id, { query: { network: q.network }, body: { answer: verdict, for: scope } });
        } catch (x) {
          toast(String(x));
        }
        soon();
      };
      const what = `${q.proto} ${q.name ? `${q.name}:${q.dst.split(":").at(-1)} (${q.dst})` : q.dst}`;
      e = el("div", { class: "ask" },
        el("p", null, el("strong", null, guestName(q.network, q.guest)), " asks for ", el("strong", null, what), ". ", el("span", { class: "small" }, `Rule: ${q.rule}`), " ", el("span", { class: "small left" })),
        el("div", { class: "ask-end" },
          el("button", { type: "button", class: "main", onclick: answer("allow", "session") }, "Allow"),
          el("button", { type: "button", onclick: answer("allow", "once") }, "Allow once"),
          el("button", { type: "button", onclick: answer("deny", "session") }, "Deny")));
      questions.set(k, e);
      box.append(e);
    }
    const left = Math.max(0, Math.round((Date.parse(q.until) - Date.now()) / 1000));
    text(e.querySelector(".left"), `${q.held} wait${q.held === 1 ? "s" : ""}, ${left} s left`);
  }
  for (const k of gone) {
    questions.get(k).remove();
    questions.delete(k);
  }
  show(box, questions.size > 0);
}
