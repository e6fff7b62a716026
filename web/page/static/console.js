// The console: what is live is fetched again as the same HTML. Without this module links and forms work as plain HTML.

const MIN_MS = 1000; // between two refreshes
const RECONNECT_MS = 5000;
const live = () => document.getElementById("live");

function announce(text) {
  document.getElementById("said").textContent = text;
}

// A cookie is not sent with a link from another site: what is asked for from here is.
async function leaveSignIn() {
  const response = await fetch(location.href).catch(() => null);
  const next = response?.ok && new DOMParser().parseFromString(await response.text(), "text/html");
  if (next && !next.querySelector(".sign-in")) location.replace(location.href);
}

// --- live parts ---

function isInUse(part) {
  const active = document.activeElement;
  const isTyping = part.contains(active) && active.matches("input:not([type=checkbox]), select, textarea");
  return isTyping || (part.contains(active) && active.matches("summary")) || !document.getSelection().isCollapsed;
}

async function refresh() {
  const part = live();
  if (document.hidden || isInUse(part)) return false;
  const response = await fetch(location.href).catch(() => null);
  if (!response) return announce("The server does not respond; this page shows an earlier state.");
  const next = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = next.getElementById("live");
  if (next.querySelector(".sign-in")) return location.reload();
  if (!fresh || isInUse(part)) return false;
  keepState(part, fresh);
  const wasVerdict = part.querySelector("#verdict")?.textContent;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const place = focused && [...part.querySelectorAll("a, button, input, [tabindex]")].indexOf(focused);
  part.replaceWith(fresh);
  if (focused) {
    const same = focused.id ? document.getElementById(focused.id) : fresh.querySelectorAll("a, button, input, [tabindex]")[place];
    same?.focus({ preventScroll: true });
  }
  const verdict = fresh.querySelector("#verdict")?.textContent;
  if (verdict && verdict !== wasVerdict) announce(verdict);
  return true;
}

// What the operator has selected, opened and scrolled stays as it is.
function keepState(part, fresh) {
  for (const box of part.querySelectorAll("input[type=checkbox]:checked")) {
    const same = [...fresh.querySelectorAll("input[type=checkbox]")].find((other) => other.value === box.value);
    if (same) same.checked = true;
  }
  for (const open of part.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
  }
}

let timer = null;
let lastMs = 0;

function queueRefresh() {
  timer ??= setTimeout(
    async () => {
      lastMs = Date.now();
      await refresh();
      timer = null;
    },
    Math.max(250, lastMs + MIN_MS - Date.now()),
  );
}

let stream = null;

function listen(job) {
  stream = new EventSource(`/ops/events${job ? `?job_id=${job}` : ""}`);
  stream.addEventListener("open", () => (document.body.dataset.live = "on"));
  stream.addEventListener("open", queueRefresh); // what happened before the stream
  for (const name of ["job", "prediction", "output", "render", "delivery", "notification", "dead_letter", "reset"]) {
    stream.addEventListener(name, queueRefresh);
  }
  stream.addEventListener("error", () => {
    document.body.dataset.live = "off";
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => listen(job), RECONNECT_MS);
  });
}

// --- keys and forms ---

function onKey(event) {
  if (event.key === "Enter" && event.target.matches("input[type=checkbox]")) event.preventDefault(); // it would submit
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  event.preventDefault();
  document.getElementById("search")?.select();
  document.getElementById("search")?.focus();
}

function start() {
  const url = new URL(location);
  url.searchParams.delete("result"); // show the message once, not after a reload
  history.replaceState(null, "", url);
  addEventListener("keydown", onKey);
  for (const form of document.querySelectorAll("form[method=get], form:not([method])")) {
    form.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
    });
  }
  document.addEventListener("change", (event) => {
    if (!event.target.matches("input[data-all]")) return;
    for (const box of event.target.form.querySelectorAll("input[name=id]")) box.checked = event.target.checked;
  });
  const next = document.querySelector("form[data-continue]");
  if (next) return next.requestSubmit(); // the next page of rows of an action that was confirmed
  const part = live();
  if (!part) return;
  if (part.dataset.seconds) setInterval(queueRefresh, 1000 * part.dataset.seconds);
  if ("events" in part.dataset) listen(part.dataset.job);
  addEventListener("pagehide", () => stream?.close());
  addEventListener("pageshow", (event) => event.persisted && stream && listen(part.dataset.job));
  document.addEventListener("visibilitychange", () => document.hidden || queueRefresh());
}

if (document.querySelector(".sign-in")) leaveSignIn();
else start();
