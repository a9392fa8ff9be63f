// The few ways in which elements are made and changed. Texts are texts: nothing here reads markup.

import { plain } from "./format.js";

export const $ = id => document.getElementById(id);

// el makes an element. Strings among the children are texts; "on…" are listeners; true and false are attributes that are
// there or not.
export function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs ?? {})) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "class") e.className = v;
    else if (v === true) e.setAttribute(k, "");
    else if (v !== false && v != null) e.setAttribute(k, plain(v));
  }
  for (const c of children.flat(Infinity)) {
    if (c == null || c === false) continue;
    e.append(c instanceof Node ? c : plain(c));
  }
  return e;
}

// text changes only what has changed, so that selections and screen readers are left alone.
export function text(e, s) {
  s = plain(s);
  if (e.textContent !== s) e.textContent = s;
}

export function show(e, yes) {
  if (e.hidden === yes) e.hidden = !yes;
}

// options fills a select and keeps what is chosen. An option is [value, label]; the first keep ones stay.
export function options(select, list, keep = 0) {
  const want = JSON.stringify(list);
  if (select.dataset.has === want) return;
  select.dataset.has = want;
  const chosen = select.value;
  while (select.options.length > keep) select.remove(keep);
  for (const [value, label] of list) select.add(new Option(plain(label), value));
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

// Sheet is a table whose rows come and go by their keys. columns are {name, text(row), cls, fill(cell, row)}; fill is
// called once for a row, where a text will not do.
export class Sheet {
  constructor(box, label, columns, none) {
    this.columns = columns;
    this.rows = new Map();
    this.body = el("tbody");
    this.none = el("p", { class: "none" }, none);
    this.table = el("table", { "aria-label": label },
      el("thead", null, el("tr", null, columns.map(c => el("th", { scope: "col", class: c.cls ?? "" },
        c.quiet ? el("span", { class: "sr" }, c.name) : c.name)))), this.body);
    box.append(this.table, this.none);
    this.set([], r => r);
  }

  set(list, key) {
    show(this.table, list.length > 0);
    show(this.none, list.length === 0);
    const gone = new Set(this.rows.keys());
    let after = null;
    for (const row of list) {
      const k = key(row);
      gone.delete(k);
      let tr = this.rows.get(k);
      if (!tr) {
        tr = el("tr", null, this.columns.map(c => {
          const td = el("td", { class: c.cls ?? "", "data-name": c.quiet ? "" : c.name });
          if (c.fill) c.fill(td, row);
          return td;
        }));
        this.rows.set(k, tr);
      }
      tr.row = row;
      this.columns.forEach((c, i) => { if (c.text) text(tr.cells[i], c.text(row) ?? ""); });
      const at = after ? after.nextSibling : this.body.firstChild;
      if (at !== tr) this.body.insertBefore(tr, at);
      after = tr;
    }
    for (const k of gone) {
      const tr = this.rows.get(k);
      // Focus that would be lost goes to what takes the row's place.
      if (tr.contains(document.activeElement)) {
        const next = (tr.nextElementSibling ?? tr.previousElementSibling)?.querySelector("button");
        (next ?? document.getElementById("main")).focus();
      }
      tr.remove();
      this.rows.delete(k);
    }
  }
}

// save hands a file to the browser.
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const a = el("a", { href: url, download: name });
  a.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // by then it is being written
}
