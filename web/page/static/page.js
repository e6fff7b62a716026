// My Renders: live updates of cards, a lightbox, and paging. Progressive enhancement: without this module links and
// forms work as plain HTML.

let grid = document.getElementById("grid");
const live = document.getElementById("live");

function announce(text) {
  if (live) live.textContent = text;
}

// --- sign-in: the token in the URL fragment becomes a session cookie and is removed from the URL ---

function postSession(token, query = "") {
  const headers = { Authorization: `Bearer ${token}` };
  return fetch(`/v1/session${query}`, { method: "POST", headers }).catch(() => null);
}

// A link of another owner does not replace the session by itself: it may be somebody else's.
async function confirmReplacement(token) {
  const read = async (headers) => (await (await fetch("/v1/session", { headers })).json()).owner;
  const [present, next] = await Promise.all([read({}), read({ Authorization: `Bearer ${token}` })]);
  const dialog = document.getElementById("replace");
  document.getElementById("replace-present").textContent = present;
  document.getElementById("replace-next").textContent = next;
  dialog.showModal();
  const isConfirmed = await new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "replace"), { once: true });
  });
  return isConfirmed ? postSession(token, "?replace=true") : null;
}

async function signIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  history.replaceState(null, "", location.pathname + location.search);
  let response = await postSession(token);
  if (response?.status === 409) {
    response = await confirmReplacement(token);
    if (response === null) return false;
  }
  if (response?.ok) {
    location.reload();
    return true;
  }
  const message = document.getElementById("message") ?? live;
  const isDown = !response || response.status >= 500;
  if (message) message.textContent = isDown ? "The server is temporarily unavailable: open the link again in a moment." : "This link has expired: request a new link in the application.";
  return false;
}

// --- times, and headings of days, in the local time zone ---

const dateFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const dayFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });

function localise(root) {
  for (const time of root.querySelectorAll("time:not([data-local])")) {
    time.textContent = timeFormat.format(new Date(time.dateTime));
    time.title = dateFormat.format(new Date(time.dateTime));
    time.dataset.local = "";
  }
}

function nameDay(date) {
  const midnight = (day) => new Date(day).setHours(0, 0, 0, 0);
  const days = Math.round((midnight(Date.now()) - midnight(date)) / 86_400_000); // a day of 23 or 25 hours counts as one
  return ["Today", "Yesterday"][days] ?? dayFormat.format(date);
}

function groupByDay() {
  for (const heading of grid.querySelectorAll(".day")) heading.remove();
  let previous = null;
  for (const card of grid.querySelectorAll(".card")) {
    const name = nameDay(new Date(card.querySelector("time").dateTime));
    if (name !== previous) {
      const item = document.createElement("li");
      item.className = "day";
      item.append(Object.assign(document.createElement("h2"), { textContent: name }));
      card.before(item);
    }
    previous = name;
  }
}

function changeCount(change) {
  const element = document.getElementById("count");
  const count = Number(element.dataset.count) + change;
  element.dataset.count = count;
  if (!element.textContent.startsWith("More")) element.textContent = `${count} render${count === 1 ? "" : "s"}`;
}

// --- new and changed cards ---

function parseCards(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // from our own server, which escapes user text
  return [...template.content.children];
}

const CONTROLS = "a, button, summary, audio";

function showCard(card) {
  localise(card);
  const previous = document.getElementById(card.id);
  if (previous) {
    const folds = card.querySelectorAll("details");
    [...previous.querySelectorAll("details")].forEach((fold, index) => folds[index]?.toggleAttribute("open", fold.open));
    if (previous.outerHTML === card.outerHTML) return;
    const focused = [...previous.querySelectorAll(CONTROLS)].indexOf(document.activeElement);
    previous.replaceWith(card);
    if (focused >= 0) [...card.querySelectorAll(CONTROLS)].at(focused)?.focus();
    return;
  }
  const more = grid.querySelector(".more");
  const older = [...grid.querySelectorAll(".card")].find((other) => other.id < card.id); // ids are time-ordered
  changeCount(1);
  if (!older && more) return; // belongs to a later page
  card.classList.add("fresh");
  grid.insertBefore(card, older ?? more);
  groupByDay();
  document.getElementById("empty").hidden = true;
  announce("New render added.");
}

function removeCard(job) {
  const card = document.getElementById(`job-${job}`);
  if (!card) return;
  card.remove();
  changeCount(-1);
  groupByDay();
  document.getElementById("empty").hidden = Boolean(grid.querySelector(".card"));
}

async function refresh(job) {
  const response = await fetch(`/page/jobs/${job}?${grid.dataset.query}`).catch(() => null);
  if (response?.status === 404 || response?.status === 204) {
    // deleted, or no longer matched by the filter
    removeCard(job);
  } else if (response?.ok) {
    showCard(parseCards(await response.text())[0]);
  }
}

// The stream starts after the page was rendered: fetch the changes in between.
async function catchUp() {
  const response = await fetch(`/?${grid.dataset.query}`, { headers: { "X-Fragment": "cards" } }).catch(() => null);
  const cards = response?.ok ? parseCards(await response.text()).filter((card) => card.matches(".card")) : [];
  const current = new Set(cards.map((card) => card.id));
  cards.reverse().forEach(showCard);
  for (const card of grid.querySelectorAll(".card")) if (!current.has(card.id)) queueRefresh(card.dataset.job);
}

const changed = new Set();
let timer = null;

function queueRefresh(job) {
  changed.add(job);
  timer ??= setTimeout(async () => {
    timer = null;
    const jobs = [...changed];
    changed.clear();
    for (const changedJob of jobs) await refresh(changedJob);
  }, 250);
}

const RECONNECT_MS = 5000;
let stream = null;
let wasLost = false;

function listen() {
  let isResumed = false; // true after the browser reconnected with Last-Event-ID
  stream = new EventSource("/v1/events");
  stream.addEventListener("open", () => {
    if (wasLost) announce("Reconnected.");
    wasLost = false;
    document.body.dataset.live = "on";
    if (!isResumed) catchUp();
    isResumed = true;
  });
  stream.addEventListener("error", () => {
    wasLost = true;
    document.body.dataset.live = "off";
    if (stream.readyState === EventSource.CLOSED) reconnect();
  });
  const onEvent = (event) => {
    const job = JSON.parse(event.data).job_id;
    if (job) queueRefresh(job);
  };
  for (const name of ["message", "job", "prediction", "output", "render"]) stream.addEventListener(name, onEvent);
  stream.addEventListener("reset", () => location.reload());
}

// The response was not a stream: the session has expired, or the server is temporarily unavailable.
async function reconnect() {
  const response = await fetch("/v1/session").catch(() => null);
  if (response?.status === 401) {
    announce("Your session has expired: request a new link in the application.");
    return;
  }
  announce("Live updates are unavailable; reconnecting.");
  setTimeout(listen, RECONNECT_MS);
}

// --- paging ---

async function showMore(link) {
  link.setAttribute("aria-busy", "true");
  const response = await fetch(link.href, { headers: { "X-Fragment": "cards" } }).catch(() => null);
  if (!response?.ok) {
    link.removeAttribute("aria-busy");
    announce("Loading more failed: try again.");
    return;
  }
  const cards = parseCards(await response.text()).filter((card) => !card.id || !document.getElementById(card.id));
  link.closest("li").replaceWith(...cards);
  localise(grid);
  groupByDay();
  cards.find((card) => card.id)?.querySelector("a, button, summary")?.focus({ preventScroll: true });
  announce(`${cards.filter((card) => card.id).length} more renders.`);
}

// --- filters: they act at once, and the focus stays where it is ---

async function showFiltered(form) {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  const url = `/?${query}`;
  const response = await fetch(url, { headers: { Accept: "text/html" } }).catch(() => null);
  const page = response?.ok ? new DOMParser().parseFromString(await response.text(), "text/html") : null;
  if (!page?.getElementById("grid")) {
    location.assign(url); // the browser shows why
    return;
  }
  for (const id of ["renders", "summary"]) document.getElementById(id).replaceWith(page.getElementById(id));
  const count = document.getElementById("count"); // a live region is heard if its text changes
  count.dataset.count = page.getElementById("count").dataset.count;
  count.textContent = page.getElementById("count").textContent;
  history.pushState(null, "", query.size ? url : "/");
  showGrid();
}

function showGrid() {
  grid = document.getElementById("grid");
  localise(document);
  groupByDay();
  document.getElementById("renders").addEventListener("click", onClick);
  document.getElementById("renders").addEventListener("submit", onSubmit);
}

function onClick(event) {
  const copy = event.target.closest("[data-copy]");
  if (copy) copyLink(copy, copy.dataset.copy);
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const view = event.target.closest("a[data-view]");
  const next = event.target.closest("a[data-more]");
  if (!view && !next) return;
  event.preventDefault();
  if (view) showFile(view);
  else showMore(next);
}

// The favourite mark changes nothing else on the page: no reload.
async function onSubmit(event) {
  const form = event.target;
  if (!form.matches(".mark")) return;
  event.preventDefault();
  await fetch(form.action, { method: "POST", redirect: "manual" }).catch(() => null);
  await refresh(form.closest(".card").dataset.job);
}

// --- the lightbox ---

const box = document.getElementById("lightbox");
let currentLink = null; // the link in the grid whose file is shown

const fileLinks = () => [...grid.querySelectorAll("a[data-view]")];

function showFile(link) {
  currentLink = link;
  const isVideo = "video" in link.dataset;
  const file = document.createElement(isVideo ? "video" : "img");
  file.src = link.href;
  const title = link.closest(".card").querySelector("h3").textContent;
  if (isVideo) {
    Object.assign(file, { controls: true, autoplay: true, loop: true, playsInline: true });
    file.setAttribute("aria-label", title);
  } else {
    file.alt = title;
    file.width = link.dataset.width;
    file.height = link.dataset.height;
  }
  document.getElementById("stage").replaceChildren(file);
  const all = fileLinks();
  const position = `${all.indexOf(link) + 1} of ${all.length}`;
  document.getElementById("caption").textContent = `${title} · ${link.dataset.label} · ${position}`;
  for (const id of ["original", "download"]) document.getElementById(id).href = link.href;
  if (!box.open) box.showModal();
}

function step(offset) {
  const all = fileLinks();
  const index = all.findIndex((link) => link.dataset.view === currentLink?.dataset.view);
  showFile(all[(Math.max(index, 0) + offset + all.length) % all.length]);
}

async function copyLink(button, url) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(new URL(url, location).href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy failed: open Original";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

const KEYS = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => showFile(fileLinks()[0]), End: () => showFile(fileLinks().at(-1)) };

function start() {
  document.documentElement.classList.add("scripted");
  showGrid();
  const url = new URL(location);
  url.searchParams.delete("result"); // show the message once, not after a reload
  history.replaceState(null, "", url);
  const filters = document.querySelector(".filters");
  filters.addEventListener("change", () => showFiltered(filters));
  addEventListener("popstate", () => location.reload());
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("copy").addEventListener("click", (event) => copyLink(event.currentTarget, currentLink.href));
  document.getElementById("close").addEventListener("click", () => box.close());
  document.getElementById("stage").addEventListener("click", (event) => event.target.id === "stage" && box.close());
  box.addEventListener("close", () => {
    document.getElementById("stage").replaceChildren();
    const returnTo = currentLink && fileLinks().find((link) => link.dataset.view === currentLink.dataset.view);
    (returnTo ?? currentLink)?.focus();
  });
  box.addEventListener("keydown", (event) => {
    if (event.target.tagName === "VIDEO" || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  addEventListener("pagehide", () => stream.close());
  addEventListener("pageshow", (event) => event.persisted && listen());
  listen();
}

if (!(await signIn()) && grid) start();
