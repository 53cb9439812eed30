// Sending files of rows, one after the other, with their progress; and the charts of one dataset.
import { make } from "./actions.js";
import { drawAll } from "./charts.js";

const upload = document.querySelector("[data-upload]");
const waiting = [];
let sending = false;
let sent = [];

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

// A line of the list: what is sent, how far it is, and a button that stops it.
function line(file) {
  const state = make("span", { class: "dim" }, "waits");
  const progress = make("progress", { max: "1", value: "0", class: "wide", "aria-label": `Progress of ${file.name}` });
  const cancel = make("button", { type: "button", class: "small", "aria-label": `Cancel ${file.name}` }, "Cancel");
  const result = make("div", { class: "result", role: "status" });
  const head = make("div", { class: "row" }, make("b", {}, file.name), make("span", { class: "dim" }, bytes(file.size)), state, make("span", { class: "end" }, cancel));
  const item = make("li", {}, head, progress, result);
  upload.querySelector("[data-uploads]").append(item);
  const entry = { file, state, progress, cancel, result, request: null, cancelled: false };
  cancel.addEventListener("click", () => {
    entry.cancelled = true;
    if (entry.request) entry.request.abort();
    else { waiting.splice(waiting.indexOf(entry), 1); done(entry, "cancelled"); }
  });
  return entry;
}

function done(entry, state) {
  entry.state.textContent = state;
  entry.progress.remove();
  entry.cancel.remove();
}

function add(files) {
  for (const file of files) waiting.push(line(file));
  next();
}

// When one file was chosen, its page comes next; of several the list says how each went.
async function next() {
  if (sending) return;
  sending = true;
  sent = [];
  while (waiting.length) await send(waiting.shift());
  sending = false;
  if (sent.length === 1 && upload.querySelectorAll("li").length === 1) location.assign(`/ui/datasets/${encodeURIComponent(sent[0].id)}`);
}

function send(entry) {
  return new Promise((resolve) => {
    const form = new FormData();
    const encoding = upload.querySelector("[name=encoding]").value.trim();
    if (encoding) form.append("encoding", encoding);
    if (upload.querySelector("[name=replace]").checked) form.append("errors", "replace");
    form.append("file", entry.file, entry.file.name);
    const request = new XMLHttpRequest();
    entry.request = request;
    request.open("POST", "/datasets");
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      entry.progress.value = event.loaded / event.total;
      entry.state.textContent = `sending, ${Math.floor((100 * event.loaded) / event.total)} %`;
    });
    request.upload.addEventListener("load", () => {
      entry.state.textContent = "sent; every row is read and checked now";
      entry.progress.removeAttribute("value");
    });
    request.addEventListener("load", () => { answered(entry, request); resolve(); });
    request.addEventListener("error", () => { failed(entry, { detail: "The connection broke.", hint: "Is the service running? Choose the file again." }); resolve(); });
    request.addEventListener("abort", () => { done(entry, "cancelled"); resolve(); });
    entry.state.textContent = "sending";
    request.send(form);
  });
}

function answered(entry, request) {
  let document = {};
  try { document = JSON.parse(request.responseText); } catch { /* a proxy's page */ }
  if (request.status === 401) location.assign(`/ui/sign-in?next=${encodeURIComponent(location.pathname)}`);
  if (request.status !== 201) {
    failed(entry, { detail: `The service answered ${request.status}.`, ...document });
    return;
  }
  sent.push(document);
  done(entry, `${document.rows.toLocaleString()} rows`);
  const address = encodeURIComponent(document.id);
  entry.result.append(make("p", { class: "callout good" }, "It is there. ", make("a", { href: `/ui/datasets/${address}` }, `Look at ${document.name}`), " · ", make("a", { href: `/ui/jobs/new?dataset=${address}` }, "New job with it")));
  for (const warning of document.warnings) entry.result.append(make("p", { class: "callout warn" }, warning.message));
}

function failed(entry, problem) {
  done(entry, "refused");
  const rows = (problem.errors ?? []).map((error) => make("li", {}, error.message));
  const several = rows.length > 1 ? make("ul", {}, ...rows) : null;
  entry.result.append(make("div", { class: "callout bad" }, make("b", {}, problem.detail), several, problem.hint ? make("p", { class: "dim" }, problem.hint) : null));
}

if (upload) {
  const drop = upload.querySelector("[data-drop]");
  const choice = upload.querySelector("[data-files]");
  choice.addEventListener("change", () => { add(choice.files); choice.value = ""; });
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); add(event.dataTransfer.files); });
  // A file dropped beside the box would be opened in place of this page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  addEventListener("beforeunload", (event) => { if (sending) event.preventDefault(); });
}
drawAll();
