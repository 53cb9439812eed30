// Calling the API from a page, and telling the reader how it went. No page is known here.

export class Problem extends Error {
  constructor(document, status) {
    super(document.detail ?? `The service answered ${status}.`);
    Object.assign(this, { status, code: document.code, hint: document.hint, errors: document.errors ?? [] });
  }
}

// The JSON that the API answers with; null where it answers with nothing. Throws a Problem.
export async function call(method, path, body, headers = {}) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const types = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers: { Accept: "application/json", ...types, ...headers }, ...content });
  } catch {
    throw new Problem({ detail: "The service does not answer.", hint: "Is it running? Your input is still here." }, 0);
  }
  if (response.status === 401) {
    location.assign(`/ui/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  const text = await response.text();
  let document = null;
  try { document = text ? JSON.parse(text) : null; } catch { /* a proxy's page */ }
  if (!response.ok) throw new Problem(document ?? {}, response.status);
  return document;
}

export function toast(message, kind = "good", detail = null) {
  const box = document.querySelector("[data-toasts]");
  const element = document.createElement("div");
  element.className = `toast ${kind}`;
  element.append(message);
  if (detail) element.append(Object.assign(document.createElement("small"), { textContent: detail }));
  const close = Object.assign(document.createElement("button"), { type: "button", className: "quiet small", textContent: "×" });
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => element.remove());
  element.append(close);
  box.append(element);
  if (kind === "good") setTimeout(() => element.remove(), 6000);
}

// Whether the reader says yes. A native dialog: it keeps the focus and closes with Escape.
export function ask(question, detail, yes) {
  const dialog = document.createElement("dialog");
  dialog.className = "ask";
  const title = Object.assign(document.createElement("h2"), { textContent: question });
  const form = document.createElement("form");
  form.method = "dialog";
  const buttons = document.createElement("div");
  buttons.className = "row end";
  for (const [value, text, look] of [["no", "Leave it", ""], ["yes", yes, "primary"]]) {
    buttons.append(Object.assign(document.createElement("button"), { value, textContent: text, className: look }));
  }
  form.append(title);
  if (detail) form.append(Object.assign(document.createElement("p"), { textContent: detail }));
  form.append(buttons);
  dialog.append(form);
  dialog.setAttribute("aria-label", question);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
  });
}

// A node of the document: make("a", {href: "…"}, "text", otherNode). Text stays text.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// A problem as a box: what is wrong in all, each of `lines` (what has no field of its own), and what to do next.
export function complaint(problem, lines = problem.errors.map((error) => error.message)) {
  return make("div", { class: "callout bad" },
    make("b", {}, problem.message), ...lines.map((line) => make("div", {}, line)),
    problem.hint ? make("div", { class: "dim" }, problem.hint) : null);
}

// Each error that has a place in the form is shown there; the lines of the others. A place names its JSON pointers.
export function place(form, problem) {
  const rest = [];
  for (const error of problem.errors) {
    const spot = [...form.querySelectorAll("[data-problem]")].find((one) => one.dataset.problem.split(" ").some((at) => error.pointer === at || error.pointer.startsWith(`${at}/`)));
    if (spot) spot.append(make("span", { class: "problem" }, ` ${error.message}`));
    else rest.push(`${error.pointer} ${error.message}`);
  }
  return rest;
}
