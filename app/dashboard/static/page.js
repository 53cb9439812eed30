// What every page does: times in the reader's zone, copying, the theme, asking before what cannot be undone, and living.
import { ask, call, toast } from "./actions.js";

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

function ago(seconds) {
  if (seconds < 5) return "just now";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size * (unit === "d" ? 2 : 1)) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

export function localTimes(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const at = new Date(element.dateTime);
    const format = "clock" in element.dataset ? time : day;
    element.textContent = "ago" in element.dataset ? ago((Date.now() - at) / 1000) : format.format(at);
    element.title = day.format(at);
  }
}

// --- living: the server says that something changed, the page is fetched anew, and its living parts are exchanged -----

let fetching = null;

export async function refresh() {
  if (fetching) return fetching;
  fetching = (async () => {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const old of document.querySelectorAll("[data-live][id]")) {
      const now = fresh.getElementById(old.id);
      if (!now || old.outerHTML === now.outerHTML || old.dataset.shown === now.outerHTML) continue;
      if (old.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")) continue;
      exchange(old, now);
    }
    document.dispatchEvent(new CustomEvent("refreshed", { detail: fresh }));
  })().finally(() => { fetching = null; });
  return fetching;
}

// The element stays, and with it the place where the reader is; focus comes back to what has the same address.
function exchange(old, now) {
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const open = new Set([...old.querySelectorAll("details[open][id]")].map((element) => element.id));
  old.dataset.shown = now.outerHTML;
  old.replaceChildren(...now.childNodes);
  for (const id of open) old.querySelector(`details#${CSS.escape(id)}`)?.setAttribute("open", "");
  if (focused) old.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  localTimes(old);
}

function live(address) {
  let timer = null;
  const source = new EventSource(address);
  source.addEventListener("changed", () => {
    if (document.hidden) { timer = "late"; return; }
    clearTimeout(timer);
    timer = setTimeout(refresh, 150);
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === "late") { timer = null; refresh(); } });
  addEventListener("pagehide", () => source.close());
}

// --- what a click does ------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-theme-switch], [data-call]");
  if (!button) return;
  if ("copy" in button.dataset) {
    await navigator.clipboard.writeText(button.dataset.copy).then(() => toast("Copied"), () => toast("Copying is not allowed here", "bad"));
  } else if ("themeSwitch" in button.dataset) {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
    document.dispatchEvent(new Event("themed"));
  } else {
    await act(button);
  }
});

// <button data-call="POST /jobs/x/cancel" data-ask="Cancel this job?" data-body='{…}' data-then="/ui/jobs" data-said="…">
async function act(button) {
  const { call: wanted, ask: question, body, then, said } = button.dataset;
  if (question && !(await ask(question, button.dataset.askDetail, button.textContent.trim()))) return;
  const [method, path] = wanted.split(" ");
  button.disabled = true;
  try {
    await call(method, path, body ? JSON.parse(body) : undefined);
    if (said) toast(said);
    if (then) location.assign(then);
    else await refresh();
  } catch (problem) {
    toast(problem.message, "bad", problem.hint);
  } finally {
    button.disabled = false;
  }
}

localTimes();
setInterval(() => localTimes(), 20_000);
if (document.body.dataset.changes) live(document.body.dataset.changes);
