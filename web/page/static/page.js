// My Renders: pictures arrive by themselves, open in a lightbox, and more are shown on demand. Without this module the
// page is whole: links lead to files and pages, forms are sent.

const grid = document.getElementById("grid");
const live = document.getElementById("live");

function tell(text) {
  if (live) live.textContent = text;
}

// --- the link of the application: a token after the number sign becomes a cookie, and leaves the address ---

async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  history.replaceState(null, "", location.pathname + location.search);
  const answer = await fetch("/v1/session", {
    method: "POST",
    headers: { Authorization: `Bearer ${token}` },
  }).catch(() => null);
  if (answer?.ok) {
    location.reload();
    return true;
  }
  const told = document.getElementById("told") ?? live;
  if (told) told.textContent = "This link is no longer good: ask the application for a new one.";
  return false;
}

// --- times in the reader's own zone ---

const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localise(root) {
  for (const time of root.querySelectorAll("time:not([data-local])")) {
    time.textContent = zoned.format(new Date(time.dateTime));
    time.title = time.dateTime;
    time.dataset.local = "";
  }
}

// --- cards that arrive and change ---

function cardsOf(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html; // of our own server, which escapes what others wrote
  return [...holder.content.children];
}

function put(card) {
  localise(card);
  const there = document.getElementById(card.id);
  if (there?.outerHTML === card.outerHTML) return;
  if (there) {
    const focus = there.contains(document.activeElement);
    there.replaceWith(card);
    if (focus) card.querySelector("a, button")?.focus();
    return;
  }
  const more = grid.querySelector(".more");
  const older = [...grid.querySelectorAll(".card")].find((one) => one.id < card.id); // ids are made in order of time
  if (!older && more) return; // its place is further down, where it comes with the others
  card.classList.add("fresh");
  grid.insertBefore(card, older ?? more);
  document.getElementById("empty").hidden = true;
  tell("A new render has arrived.");
}

async function refresh(job) {
  const answer = await fetch(`/page/jobs/${job}?${grid.dataset.query}`).catch(() => null);
  if (answer?.status === 404 || answer?.status === 204) {
    // deleted, or it no longer fits the filter
    document.getElementById(`job-${job}`)?.remove();
    document.getElementById("empty").hidden = Boolean(grid.querySelector(".card"));
  } else if (answer?.ok) {
    put(cardsOf(await answer.text())[0]);
  }
}

// What happened between the making of the page and the beginning of its stream was told to nobody.
async function catchUp() {
  const answer = await fetch(`/?${grid.dataset.query}`, { headers: { "X-Fragment": "cards" } }).catch(() => null);
  const cards = answer?.ok ? cardsOf(await answer.text()).filter((card) => card.matches(".card")) : [];
  const told = new Set(cards.map((card) => card.id));
  cards.reverse().forEach(put);
  for (const card of grid.querySelectorAll(".card")) if (!told.has(card.id)) note(card.dataset.job);
}

const changed = new Set();
let soon = null;

function note(job) {
  changed.add(job);
  soon ??= setTimeout(async () => {
    soon = null;
    const jobs = [...changed];
    changed.clear();
    for (const one of jobs) await refresh(one);
  }, 250);
}

const AGAIN_MS = 5000;
let stream = null;
let wasLost = false;

function listen() {
  let isResumed = false; // a stream that the browser itself takes up again goes on where it broke
  stream = new EventSource("/v1/events");
  stream.addEventListener("open", () => {
    if (wasLost) tell("Connected again.");
    wasLost = false;
    document.body.dataset.live = "on";
    if (!isResumed) catchUp();
    isResumed = true;
  });
  stream.addEventListener("error", () => {
    wasLost = true;
    document.body.dataset.live = "off";
    if (stream.readyState === EventSource.CLOSED) listenAgain();
  });
  const onEvent = (event) => {
    const job = JSON.parse(event.data).job_id;
    if (job) note(job);
  };
  for (const name of ["message", "job", "prediction", "output", "render"]) stream.addEventListener(name, onEvent);
  stream.addEventListener("reset", () => location.reload());
}

// The answer was no stream: the session is over, or moorage (or what stands before it) is away for a while.
async function listenAgain() {
  const answer = await fetch("/v1/session").catch(() => null);
  if (answer?.status === 401) {
    tell("Your link has run out: ask the application for a new one.");
    return;
  }
  tell("No live updates now; they are tried again.");
  setTimeout(listen, AGAIN_MS);
}

// --- more of the list ---

async function more(link) {
  link.setAttribute("aria-busy", "true");
  const answer = await fetch(link.href, { headers: { "X-Fragment": "cards" } }).catch(() => null);
  if (!answer?.ok) {
    link.removeAttribute("aria-busy");
    tell("More could not be loaded: try once more.");
    return;
  }
  const cards = cardsOf(await answer.text()).filter((card) => !card.id || !document.getElementById(card.id));
  link.closest("li").replaceWith(...cards);
  localise(grid);
  cards[0]?.querySelector("a, button")?.focus({ preventScroll: true });
  tell(`${cards.filter((card) => card.id).length} more.`);
}

// --- the lightbox ---

const box = document.getElementById("lightbox");
let shown = null; // the link in the grid whose file is shown

const links = () => [...grid.querySelectorAll("a[data-view]")];

function show(link) {
  shown = link;
  const isVideo = "video" in link.dataset;
  const file = document.createElement(isVideo ? "video" : "img");
  file.src = link.href;
  const title = link.closest(".card").querySelector("h2").textContent;
  if (isVideo) {
    Object.assign(file, { controls: true, autoplay: true, loop: true, playsInline: true });
    file.setAttribute("aria-label", title);
  } else {
    file.alt = title;
    file.width = link.dataset.width;
    file.height = link.dataset.height;
  }
  document.getElementById("stage").replaceChildren(file);
  const all = links();
  const place = `${all.indexOf(link) + 1} of ${all.length}`;
  document.getElementById("caption").textContent = `${title} · ${link.dataset.width} × ${link.dataset.height} · ${place}`;
  document.getElementById("original").href = link.href;
  if (!box.open) box.showModal();
}

function step(by) {
  const all = links();
  const at = all.findIndex((link) => link.dataset.view === shown?.dataset.view);
  show(all[(Math.max(at, 0) + by + all.length) % all.length]);
}

async function copy(button) {
  const was = button.textContent;
  try {
    await navigator.clipboard.writeText(new URL(shown.href, location).href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from Original";
  }
  setTimeout(() => (button.textContent = was), 1500);
}

const KEYS = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => show(links()[0]), End: () => show(links().at(-1)) };

function begin() {
  localise(document);
  const address = new URL(location);
  address.searchParams.delete("told"); // said once, not again at every reload
  history.replaceState(null, "", address);
  grid.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const view = event.target.closest("a[data-view]");
    const next = event.target.closest("a[data-more]");
    if (!view && !next) return;
    event.preventDefault();
    if (view) show(view);
    else more(next);
  });
  document.querySelector(".filters").addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("copy").addEventListener("click", (event) => copy(event.currentTarget));
  document.getElementById("close").addEventListener("click", () => box.close());
  document.getElementById("stage").addEventListener("click", (event) => event.target.id === "stage" && box.close());
  box.addEventListener("close", () => {
    document.getElementById("stage").replaceChildren();
    const again = shown && links().find((link) => link.dataset.view === shown.dataset.view);
    (again ?? shown)?.focus();
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

if (!(await enter()) && grid) begin();
