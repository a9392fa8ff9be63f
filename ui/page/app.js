// The page: which view is shown, what is asked how often, and the keys.

import * as api from "./api.js";
import * as captures from "./captures.js";
import * as edit from "./edit.js";
import * as events from "./events.js";
import * as flows from "./flows.js";
import * as guests from "./guests.js";
import * as status from "./status.js";
import { $, text, show, options } from "./dom.js";
import { state } from "./state.js";

const views = ["guests", "flows", "forwards", "names", "captures", "events", "status"];
const filters = { guests: "guest-filter", flows: "flow-filter", events: "event-filter", forwards: "forward-rule", names: "dns-name", captures: "capture-filter" };

// A line that says what was done, and undoes it.
let toasting;
function toast(s, undo) {
  clearTimeout(toasting);
  text($("toast-text"), s);
  show($("toast-undo"), Boolean(undo));
  $("toast-undo").onclick = async () => {
    hideToast();
    try {
      await undo();
    } catch (e) {
      toast(String(e));
    }
    refresh();
  };
  show($("toast"), true);
  toasting = setTimeout(hideToast, 12_000); // long enough to read and to reach Undo with Tab
}
function hideToast() {
  if ($("toast").contains(document.activeElement)) $("main").focus();
  show($("toast"), false);
}

// Views.

function route() {
  const [, name, query] = /^#([a-z]*)\??(.*)$/.exec(location.hash) ?? [];
  if (name === "main") { $("main").focus(); return; }
  const view = views.includes(name) ? name : "guests";
  const moved = state.view && state.view !== view;
  state.view = view;
  for (const v of views) {
    show($("view-" + v), v === view);
    const a = document.querySelector(`nav.views a[href="#${v}"]`);
    if (v === view) { a.setAttribute("aria-current", "page"); a.scrollIntoView({ block: "nearest", inline: "nearest" }); }
    else a.removeAttribute("aria-current");
  }
  document.title = `${view[0].toUpperCase()}${view.slice(1)} – vmnetd`;
  const guest = new URLSearchParams(query).get("guest");
  if (view === "flows" && guest !== null) flows.ofGuest(guest);
  if (moved) scrollTo(0, 0);
  flows.draw(true);
  guests.draw();
  events.draw();
  refresh();
}

// What is asked, and how often. Each is asked again only when it has been answered, so that a slow daemon is not asked
// twice, and nothing but the guests while nobody looks.

const tasks = [];
function every(ms, wanted, ask) {
  const t = { ms, wanted, ask, due: 0, busy: false };
  tasks.push(t);
}

async function run(t) {
  t.busy = true;
  t.again = false;
  try {
    await t.ask();
  } catch { /* watch says so, where it is not one thing's own trouble */ }
  t.busy = false;
  t.due = Date.now() + (t.again ? 0 : t.ms);
}

function tick() {
  const now = Date.now();
  for (const t of tasks) if (!t.busy && now >= t.due && t.wanted()) run(t);
}

// refresh asks for all that is shown now.
function refresh() {
  for (const t of tasks) {
    t.due = 0;
    t.again = t.busy;
  }
  tick();
}

const seen = () => !document.hidden;
const at = (...list) => () => seen() && list.includes(state.view);

function setTasks() {
  every(1000, () => true, async () => {
    guests.sample(await api.get("guests"), Date.now());
    if (seen()) guests.draw();
  });
  every(3000, at("guests"), async () => guests.setLimits(await api.get("limits")));
  every(3000, seen, async () => {
    const st = await api.get("status");
    const names = st.networks.map(n => n.name);
    if (names.join("\n") !== state.networks.join("\n")) {
      state.networks = names;
      if (!names.includes(state.network)) state.network = "";
      show($("net-box"), names.length > 1);
      options($("net"), [["", "all"], ...names.map(n => [n, n])]);
      edit.setNetworks(names);
    }
    if (state.view === "status") status.draw(st);
  });
  every(2000, seen, async () => edit.setForwards(await api.get("forwards")));
  every(2000, at("names"), async () => edit.setRecords(await api.get("dns")));
  every(2000, seen, async () => edit.setLeases(await api.get("leases")));
  every(2000, seen, async () => {
    try {
      edit.setQuestions(await api.get("policy/questions"));
    } catch (e) {
      edit.setQuestions([]); // a network with a policy of its program's own
      throw e;
    }
  });
  captures.tasks(every, seen);
}

// The link to the daemon.

function linked(problem, first) {
  document.documentElement.classList.toggle("is-away", Boolean(problem));
  text($("link-text"), problem ? "away" : "live");
  $("link").dataset.state = problem ? "away" : "live";
  show($("away"), Boolean(problem));
  if (problem) {
    text($("away-what"), problem.message);
    text($("away-hint"), problem.hint);
  } else if (!first) {
    flows.forget(); // another daemon's ids are others'
    refresh();
  }
}

// The theme: as the system, light, dark.

const themes = ["", "light", "dark"];
function theme(step) {
  let at = themes.indexOf(document.documentElement.dataset.theme ?? "");
  if (step) {
    at = (at + 1) % themes.length;
    const chosen = themes[at];
    if (chosen) document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
    try {
      if (chosen) localStorage.setItem("vmnetd-theme", chosen);
      else localStorage.removeItem("vmnetd-theme");
    } catch { /* it lasts as long as the page */ }
  }
  text($("theme"), ["Theme: auto", "Theme: light", "Theme: dark"][at]);
}

// Keys.

function pressed(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || $("help").open) return;
  const field = e.target.closest("input, select, textarea");
  if (e.key === "Escape") {
    if (field?.type === "search" && field.value) {
      field.value = "";
      field.dispatchEvent(new Event("input"));
    } else if (!flows.close()) {
      field?.blur();
      hideToast();
    }
    e.preventDefault();
    return;
  }
  if (field) return;
  const n = Number(e.key);
  if (e.key === "/") {
    if (!filters[state.view]) location.hash = "#flows";
    setTimeout(() => $(filters[state.view] ?? "flow-filter").focus()); // a view that is just being shown
  } else if (n >= 1 && n <= views.length) {
    const there = [...document.querySelectorAll("nav.views a")].filter(a => !a.hidden);
    there[n - 1]?.click();
  } else if (e.key === "?") $("help").showModal();
  else if (e.key === "p" && state.view === "flows") flows.pause();
  else if (e.key === "t") theme(true);
  else return;
  e.preventDefault();
}

addEventListener("hashchange", route);
addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => { if (seen()) refresh(); });
$("theme").addEventListener("click", () => theme(true));
$("keys").addEventListener("click", () => $("help").showModal());
$("net").addEventListener("change", e => {
  state.network = e.target.value;
  edit.setNetworks(state.networks);
  route();
});

api.watch(linked);
await api.enter();
guests.setup(toast);
flows.setup();
edit.setup(toast, refresh);
captures.setup(toast, refresh);
events.setup();
status.setup(toast);
theme(false);
setTasks();
route();
setInterval(tick, 100);
events.run(e => {
  // What changed is shown at once, not at the next question.
  if (e.kind.startsWith("forward-") || e.kind.startsWith("lease") || e.kind === "question" || e.kind === "answer") refreshSoon();
});
flows.run();

let refreshing = 0;
function refreshSoon() {
  if (!refreshing) refreshing = setTimeout(() => { refreshing = 0; refresh(); }, 250);
}
