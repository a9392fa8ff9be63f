// The one way to the daemon: requests under /v1 with the token, and whether they are answered.

// Problem is what went wrong, as the API says it (RFC 9457), and what would be right.
export class Problem extends Error {
  constructor(status, detail, hint) {
    super(detail);
    this.status = status;
    this.hint = hint ?? "";
  }
  toString() { return this.hint ? `${this.message} — ${this.hint}` : this.message; }
}

const place = "vmnetd-token";
let token = "";
try { token = sessionStorage.getItem(place) ?? ""; } catch { /* storage is off: the token lives as long as the page */ }

// enter swaps the key in the address for the token. The key is good once, and does not stay in the address.
export async function enter() {
  const key = /^#key=([A-Za-z0-9_-]+)$/.exec(location.hash)?.[1];
  if (!key) return;
  history.replaceState(null, "", location.pathname + "#guests");
  let resp;
  try {
    resp = await fetch("enter", { method: "POST", headers: { Authorization: "Bearer " + key }, credentials: "omit" });
  } catch { return; }
  if (!resp.ok) return; // it was used: by this very tab, perhaps, whose token is kept
  token = await resp.text();
  try { sessionStorage.setItem(place, token); } catch { /* as above */ }
}

// Whether anybody answers: "" yes, else a Problem. Changes are told to watch's function.
let trouble;
let watcher = () => {};
export const watch = f => { watcher = f; };
export const away = () => Boolean(trouble);

function answered(p) {
  const before = trouble, first = before === undefined;
  trouble = p ?? null;
  if (first || before?.message !== p?.message) watcher(trouble, first);
}

async function ask(method, path, { query, body, accept = "application/json", signal, lastID } = {}) {
  const url = new URL(path, location.origin);
  for (const [k, v] of Object.entries(query ?? {})) if (v) url.searchParams.set(k, v);
  const headers = { Accept: accept };
  if (token) headers.Authorization = "Bearer " + token;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (lastID) headers["Last-Event-ID"] = lastID;
  let resp;
  try {
    resp = await fetch(url, { method, headers, signal, cache: "no-store", credentials: "omit", body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (e) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw e;
    const p = signal?.aborted ? new Problem(0, "The daemon does not answer.", "It is asked again.")
      : new Problem(0, "‘vmnetd ui’ has ended.", "Start it again and open the link that it prints.");
    answered(p);
    throw p;
  }
  if (resp.ok) {
    answered(null);
    return resp;
  }
  let told = {};
  try { told = await resp.json(); } catch { /* not the API's */ }
  const p = new Problem(resp.status, told.detail ?? `${resp.status} ${resp.statusText}`, told.hint);
  if (resp.status === 401) answered(new Problem(401, "This link has been used, or is another one’s.", "Start ‘vmnetd ui’ again and open the link that it prints."));
  else if (resp.status === 502 || resp.status === 504) answered(new Problem(502, "The daemon is away.", `${p.message}. This page goes on by itself when it is back.`));
  else answered(null);
  throw p;
}

// patience: it only has to look at its memory.
const patience = () => AbortSignal.timeout(20_000);

export async function get(path, query) {
  return (await ask("GET", "/v1/" + path, { query, signal: patience() })).json();
}

export async function change(method, path, { query, body } = {}) {
  const resp = await ask(method, "/v1/" + path, { query, body, signal: patience() });
  return resp.status === 204 ? null : resp.json().catch(() => null);
}

// fetched is a file: of a capture, or the metrics.
export async function fetched(path, accept = "*/*") {
  return (await ask("GET", path, { accept })).blob();
}

// follow calls f(event, data, id) for each event of a stream until it ends; data is null for one that has only an id.
// EventSource could not send the token. The daemon says every 15 seconds that it is there: when nothing comes for three
// of those, the stream is taken for dead.
export async function follow(path, { query, lastID, signal } = {}, f) {
  const quiet = new AbortController();
  const both = AbortSignal.any([signal, quiet.signal].filter(Boolean));
  const resp = await ask("GET", "/v1/" + path, { query, lastID, accept: "text/event-stream", signal: both });
  const reader = resp.body.pipeThrough(new TextDecoderStream()).getReader();
  let timer, rest = "";
  const wind = () => { clearTimeout(timer); timer = setTimeout(() => quiet.abort(), 45_000); };
  try {
    for (wind(); ; wind()) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
        let id = "", event = "message", data = "";
        for (const line of rest.slice(0, end).split("\n")) {
          const colon = line.indexOf(":");
          const field = line.slice(0, colon), v = line.slice(colon + 1).replace(/^ /, "");
          if (field === "id") id = v;
          else if (field === "event") event = v;
          else if (field === "data") data += v;
        }
        if (data || id) f(event, data ? JSON.parse(data) : null, id);
      }
    }
  } finally {
    clearTimeout(timer);
    quiet.abort();
  }
}
