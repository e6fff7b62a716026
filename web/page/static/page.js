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
  const focus = there?.contains(document.activeElement);
  if (there) {
    if (there.outerHTML === card.outerHTML) return;
    there.replaceWith(card);
    if (focus) card.querySelector("a, button")?.focus();
  } else {
    card.classList.add("fresh");
    grid.prepend(card);
  }
  document.getElementById("empty").hidden = true;
}

async function refresh(job) {
  const answer = await fetch(`/page/jobs/${job}?${grid.dataset.query}`).catch(() => null);
  if (!answer) return;
  if (answer.status === 404) {
    document.getElementById(`job-${job}`)?.remove();
    document.getElementById("empty").hidden = Boolean(grid.querySelector(".card"));
  } else if (answer.ok) {
    const [card] = cardsOf(await answer.text());
    const isNew = !document.getElementById(card.id);
    put(card);
    if (isNew) tell("A new render has arrived.");
  } else if (answer.status === 401) {
    tell("Your link has run out: ask the application for a new one.");
  }
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

function listen() {
  const stream = new EventSource("/v1/events");
  let wasLost = false;
  stream.addEventListener("open", () => {
    if (wasLost) tell("Connected again.");
    wasLost = false;
    document.body.dataset.live = "on";
  });
  stream.addEventListener("error", () => {
    document.body.dataset.live = "off";
    if (!wasLost && stream.readyState === EventSource.CLOSED) tell("No live updates now: reload to see what is new.");
    wasLost = true;
  });
  const onEvent = (event) => {
    const job = JSON.parse(event.data).job_id;
    if (job) note(job);
  };
  for (const name of ["message", "job", "prediction", "output", "render"]) stream.addEventListener(name, onEvent);
  stream.addEventListener("reset", () => location.reload());
  addEventListener("pagehide", () => stream.close());
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
  listen();
}

if (!(await enter()) && grid) begin();
