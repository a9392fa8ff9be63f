// A table of any length: only the rows that are seen are elements, and they are used again. It has one listener for clicks,
// one for keys, one for scrolling.

import { el, text } from "./dom.js";

const beyond = 6; // rows kept ready above and below what is seen, for a turn of the wheel

export class Grid {
  // columns: {id, name, sort(row) if it can be sorted by, text(row), cls, down: true if the largest come first}
  constructor(box, label, columns, { key, open, state }) {
    this.columns = columns;
    this.key = key;
    this.open = open;
    this.state = state;
    this.rows = [];
    this.pool = [];
    this.active = null; // the key of the row that arrows move from
    this.by = null;
    this.descending = false;
    this.heads = columns.map((c, i) => {
      const head = el("div", { role: "columnheader", class: "cell " + (c.cls ?? ""), "aria-colindex": i + 1 });
      if (c.sort) head.append(el("button", { type: "button", class: "sort", "data-column": c.id }, c.name));
      else head.textContent = c.name;
      return head;
    });
    this.head = el("div", { role: "row", class: "grid-head", "aria-rowindex": 1 }, this.heads);
    this.space = el("div", { class: "grid-space", role: "rowgroup" });
    this.root = el("div", { class: "grid", role: "grid", tabindex: 0, "aria-label": label, "aria-colcount": columns.length },
      this.head, this.space);
    box.append(this.root);
    this.root.addEventListener("scroll", () => this.soon(), { passive: true });
    this.root.addEventListener("click", e => this.clicked(e));
    this.root.addEventListener("keydown", e => this.pressed(e));
    new ResizeObserver(() => this.measure()).observe(this.root);
  }

  // onsort is called when another order is asked for.
  onsort = () => {};

  sortBy(id, descending) {
    this.by = this.columns.find(c => c.id === id);
    this.descending = descending ?? Boolean(this.by.down);
    this.columns.forEach((c, i) => {
      if (c === this.by) this.heads[i].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else if (c.sort) this.heads[i].setAttribute("aria-sort", "none");
    });
    this.onsort();
  }

  // sorted orders rows, equals by their age: the sort is stable, so keep them so.
  sorted(rows) {
    if (!this.by) return rows;
    const of = this.by.sort, down = this.descending ? -1 : 1;
    const keyed = rows.map(r => [of(r), r]);
    keyed.sort(([a], [b]) => (a < b ? -down : a > b ? down : 0));
    return keyed.map(([, r]) => r);
  }

  set(rows) {
    this.rows = rows;
    this.root.setAttribute("aria-rowcount", rows.length + 1);
    if (this.height) this.space.style.height = rows.length * this.height + "px";
    this.draw();
  }

  measure() {
    const h = parseFloat(getComputedStyle(this.root).getPropertyValue("--row")) || 34;
    if (this.root.clientHeight === 0) return; // not shown
    this.height = h;
    this.seen = Math.ceil(this.root.clientHeight / h);
    this.space.style.height = this.rows.length * h + "px";
    this.draw();
  }

  soon() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => { this.drawing = 0; this.draw(); });
  }

  draw() {
    if (!this.height) return;
    const most = this.seen + 2 * beyond;
    const first = Math.max(0, Math.min(Math.floor(this.root.scrollTop / this.height) - beyond, this.rows.length - most));
    const n = Math.min(most, this.rows.length - first);
    while (this.pool.length < n) {
      const cells = this.columns.map((c, i) => el("div", { role: "gridcell", class: "cell " + (c.cls ?? ""), "aria-colindex": i + 1 }));
      const row = el("div", { role: "row", class: "grid-row", id: `${this.root.getAttribute("aria-label").toLowerCase()}-row-${this.pool.length}` }, cells);
      row.cells = cells;
      this.pool.push(row);
      this.space.append(row);
    }
    let active = "";
    for (let k = 0; k < this.pool.length; k++) {
      // A row keeps its element while it is scrolled past: i % pool names it.
      const i = first + ((k - first) % this.pool.length + this.pool.length) % this.pool.length;
      const e = this.pool[k];
      if (i >= first + n) {
        if (!e.hidden) e.hidden = true;
        e.at = -1;
        continue;
      }
      const row = this.rows[i];
      if (e.hidden) e.hidden = false;
      if (e.at !== i || e.high !== this.height) {
        e.at = i;
        e.high = this.height;
        e.style.transform = `translateY(${i * this.height}px)`;
        e.setAttribute("aria-rowindex", i + 2);
        e.classList.toggle("odd", i % 2 === 1);
      }
      this.columns.forEach((c, j) => {
        const s = c.text(row);
        text(e.cells[j], s);
        if (c.full && e.cells[j].title !== s) e.cells[j].title = e.cells[j].textContent;
      });
      const st = this.state(row);
      if (e.dataset.state !== st) e.dataset.state = st;
      const on = this.active !== null && this.key(row) === this.active;
      if (on) active = e.id;
      if (e.classList.contains("active") !== on) {
        e.classList.toggle("active", on);
        e.setAttribute("aria-selected", on);
      }
    }
    if (this.root.getAttribute("aria-activedescendant") !== active) {
      if (active) this.root.setAttribute("aria-activedescendant", active);
      else this.root.removeAttribute("aria-activedescendant");
    }
  }

  activeIndex() { return this.active === null ? -1 : this.rows.findIndex(r => this.key(r) === this.active); }

  go(i) {
    if (this.rows.length === 0) return;
    i = Math.max(0, Math.min(this.rows.length - 1, i));
    this.active = this.key(this.rows[i]);
    const head = this.head.offsetHeight, top = i * this.height, view = this.root.clientHeight - head;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + this.height > this.root.scrollTop + view) this.root.scrollTop = top + this.height - view;
    this.draw();
  }

  clicked(e) {
    const sort = e.target.closest("button.sort");
    if (sort) {
      const id = sort.dataset.column;
      this.sortBy(id, this.by?.id === id ? !this.descending : undefined);
      return;
    }
    const row = e.target.closest(".grid-row");
    if (row && row.at >= 0 && getSelection().isCollapsed) {
      this.active = this.key(this.rows[row.at]);
      this.draw();
      this.open(this.rows[row.at]);
    }
  }

  pressed(e) {
    if (e.target !== this.root || e.ctrlKey || e.metaKey || e.altKey) return;
    const at = this.activeIndex(), page = Math.max(1, this.seen - 2);
    const to = { ArrowDown: at + 1, ArrowUp: at < 0 ? 0 : at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.rows.length - 1 }[e.key];
    if (to !== undefined) this.go(to);
    else if ((e.key === "Enter" || e.key === " ") && at >= 0) this.open(this.rows[at]);
    else return;
    e.preventDefault();
  }
}
