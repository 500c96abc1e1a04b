// Sends images to this server and shows its answers. Nothing is stored but the token, until the tab is closed.
"use strict";

const AT_ONCE = 2; // requests
const TRIES = 5; // of a request that finds the server busy
const SHOWN = 5; // classes

const at = (id) => document.getElementById(id);
const percent = (value) => `${(Math.floor(value * 1000) / 10).toFixed(1)} %`; // rounded down: 99.98 % is no certainty
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
let model = null;
let running = 0;
const queue = [];

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  for (let number = 1; ; number++) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...headers } });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (response.ok) return response;
    if (response.status === 503 && number < TRIES) {
      await pause(Number(response.headers.get("Retry-After") ?? 1));
      continue;
    }
    if (response.status === 401) at("token").hidden = false;
    const reason = await response.json().catch(() => ({}));
    throw new Error(reason.error ?? `The server answered ${response.status}.`);
  }
}

function say(text) {
  at("status").textContent = text;
}

async function showModel() {
  model = await (await ask("model")).json();
  at("token").hidden = true;
  at("name").textContent = model.name;
  document.title = `${model.name}: image classifier`;
  const names = model.class_names;
  const some = names.slice(0, 12).join(", ");
  at("facts").textContent = `${names.length} classes: ${some}${names.length > 12 ? ", ..." : ""}`;
  at("no-grad-cam").hidden = model.has_grad_cam;
  showDrift(model.drift);
}

function showDrift(drift) {
  at("drift").hidden = !drift;
  const rows = Object.entries(drift ?? {}).map(([name, row]) => {
    const line = document.createElement("tr");
    const known = row.stability_index !== null;
    const verdict = known ? (row.drift ? "drift" : "none") : "too few images";
    const cells = [row.images, known ? row.stability_index.toFixed(3) : "–", known ? row.limit.toFixed(3) : "–", verdict];
    line.append(element("th", name), ...cells.map((cell) => element("td", cell)));
    line.firstChild.scope = "row";
    return line;
  });
  at("drift-rows").replaceChildren(...rows);
}

function element(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function add(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!images.length) {
    say("There is no image among these files.");
    return;
  }
  at("bar").hidden = false;
  for (const file of images) {
    const card = at("card").content.firstElementChild.cloneNode(true);
    const picture = card.querySelector(".given");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    picture.onerror = () => (picture.hidden = true);
    card.querySelector("figcaption").textContent = file.name;
    card.querySelector("h3").textContent = "Waiting ...";
    card.classList.add("waiting");
    for (const part of card.querySelectorAll(".result .buttons, .bars")) part.hidden = true;
    at("results").prepend(card);
    queue.push({ file, card });
  }
  work();
}

async function work() {
  if (running >= AT_ONCE) return;
  running++;
  while (queue.length) {
    const { file, card } = queue.shift();
    if (card.isConnected) await show(file, card);
  }
  running--;
  if (!running) ask("model").then((answer) => answer.json()).then((found) => showDrift(found.drift)).catch(() => {});
}

async function show(file, card) {
  try {
    if (model && file.size > model.max_bytes) throw new Error(`The file is larger than ${model.max_bytes / 1e6} MB.`);
    const answer = await (await ask(`predict?top_k=${SHOWN}`, { method: "POST", body: file })).json();
    showAnswer(file, card, answer);
  } catch (error) {
    card.classList.add("failed");
    card.querySelector("h3").textContent = "No result";
    card.querySelector(".verdict").textContent = error.message;
    say(`${file.name}: ${error.message}`);
  }
  card.classList.remove("waiting");
}

function showAnswer(file, card, answer) {
  const name = answer.class || "(no name)";
  const verdict = answer.rejected
    ? `Rejected: ${percent(answer.confidence)} is below the threshold of ${percent(model?.rejection_threshold ?? 0)}; this image may be of no class.`
    : `Confidence ${percent(answer.confidence)}`;
  card.classList.toggle("rejected", answer.rejected);
  card.querySelector("h3").textContent = answer.rejected ? `Perhaps ${name}` : name;
  card.querySelector(".verdict").textContent = verdict;
  showBars(card, answer.top);
  for (const part of card.querySelectorAll(".result .buttons, .bars")) part.hidden = false;
  say(`${file.name}: ${answer.rejected ? "rejected, perhaps " : ""}${name}, ${percent(answer.confidence)}.`);
  const [more, seen, why] = [".more", ".seen", ".why"].map((kind) => card.querySelector(kind));
  more.hidden = !model || model.class_names.length <= SHOWN;
  more.onclick = () => whole(file, card, more);
  seen.onclick = () => toggle(card, seen, "What the network saw", async () => {
    const response = await ask("predict?pixels=true&top_k=1", { method: "POST", body: file });
    return (await response.json()).pixels;
  });
  why.hidden = !model?.has_grad_cam;
  why.onclick = () => toggle(card, why, `Regions that support ${name} (Grad-CAM)`, async () => {
    const path = `grad-cam?class=${encodeURIComponent(answer.class)}`;
    return URL.createObjectURL(await (await ask(path, { method: "POST", body: file })).blob());
  });
}

function showBars(card, top) {
  const rows = top.map(({ class: name, probability }) => {
    const line = document.createElement("tr");
    const head = element("th", name || "(no name)");
    head.scope = "row";
    const bar = element("div", "");
    bar.className = "bar";
    bar.append(element("i", ""));
    bar.firstChild.style.width = `${100 * probability}%`;
    const cell = document.createElement("td");
    const both = document.createElement("div");
    both.append(bar, element("span", percent(probability)));
    cell.append(both);
    line.append(head, cell);
    return line;
  });
  card.querySelector(".bars tbody").replaceChildren(...rows);
}

async function whole(file, card, button) {
  await guarded(card, button, async () => {
    const path = `predict?top_k=${model.class_names.length}`;
    showBars(card, (await (await ask(path, { method: "POST", body: file })).json()).top);
    button.hidden = true;
    card.focus();
  });
}

async function toggle(card, button, caption, load) {
  const shown = card.querySelector(`figure[data-of="${button.classList[1]}"]`);
  if (button.ariaBusy === "true") return;
  button.setAttribute("aria-expanded", String(!shown));
  if (shown) {
    shown.remove();
    return;
  }
  await guarded(card, button, async () => {
    const figure = document.createElement("figure");
    figure.dataset.of = button.classList[1];
    const picture = document.createElement("img");
    picture.alt = caption;
    picture.src = await load();
    figure.append(picture, element("figcaption", caption));
    card.querySelector(".pictures").append(figure);
    say(`${caption}: shown.`);
  });
}

async function guarded(card, button, action) {
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true"; // not disabled, which would lose the focus of the keyboard
  try {
    await action();
  } catch (error) {
    button.setAttribute("aria-expanded", "false");
    say(error.message);
    card.querySelector(".verdict").textContent = error.message;
  }
  button.ariaBusy = "false";
}

at("choose").onclick = () => at("files").click();
at("photograph").onclick = () => at("camera").click();
for (const input of [at("files"), at("camera")]) {
  input.onchange = () => {
    add(input.files);
    input.value = "";
  };
}
at("clear").onclick = () => {
  queue.length = 0;
  for (const picture of document.querySelectorAll("#results img")) URL.revokeObjectURL(picture.src);
  at("results").replaceChildren();
  at("bar").hidden = true;
  say("Cleared.");
  at("choose").focus();
};
at("token").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token-field").value);
  showModel().catch((error) => say(error.message));
};
let depth = 0; // of entered elements: leaving a child is not leaving the page
document.addEventListener("dragenter", () => at("drop").classList.toggle("over", ++depth > 0));
document.addEventListener("dragleave", () => at("drop").classList.toggle("over", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
showModel().catch((error) => say(error.message));
