// One job: running it again, and its events. Its curves are in curves.js.
import { call, make, toast } from "./actions.js";
import { follow } from "./curves.js";
import { localTimes } from "./page.js";

const ENDS = new Set(["succeeded", "failed", "cancelled"]);
const MOST_SHOWN = 2000;

const ended = () => ENDS.has(document.querySelector("[data-state]").dataset.state);

// --- running it again -------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-rerun]");
  if (!button) return;
  button.disabled = true;
  try {
    const job = await call("POST", button.dataset.rerun);
    location.assign(`/ui/jobs/${encodeURIComponent(job.id)}`);
  } catch (problem) {
    toast(problem.message, "bad", problem.hint);
    button.disabled = false;
  }
});

// Pressing Pause makes it Resume: the focus stays among the verbs.
let pressed = false;
document.querySelector("#verbs").addEventListener("click", () => { pressed = true; });
document.addEventListener("refreshed", () => {
  if (pressed && document.activeElement === document.body) document.querySelector("#verbs button, #verbs a")?.focus();
  pressed = false;
});

// --- events -----------------------------------------------------------------------------------------------------------

function listen(section) {
  const log = section.querySelector(".log");
  const list = log.querySelector("ol");
  const filter = section.querySelector("[data-events-filter]");
  const kind = filter.querySelector("select");
  const text = filter.querySelector("input");
  const count = filter.querySelector("[data-events-count]");
  const down = section.querySelector("[data-events-follow]");
  let over = ended();
  let following = true;

  const kinds = new Set();
  function admit(item) {
    const code = item.dataset.code;
    if (!kinds.has(code)) {
      kinds.add(code);
      kind.append(make("option", { value: code }, code.replaceAll("_", " ")));
    }
    item.hidden = !matches(item);
  }
  const matches = (item) => (!kind.value || item.dataset.code === kind.value)
    && (!text.value || item.textContent.toLowerCase().includes(text.value.toLowerCase()));
  function tell() {
    const shown = list.querySelectorAll("li:not([hidden])").length;
    count.textContent = shown === list.children.length ? `${shown} events` : `${shown} of ${list.children.length} events`;
  }
  function sift() {
    for (const item of list.children) item.hidden = !matches(item);
    tell();
    if (following) toEnd();
  }
  function toEnd() { log.scrollTop = log.scrollHeight; }
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 24;

  function add(event) {
    const time = make("time", { datetime: event.at, "data-clock": true });
    const item = make("li", { "data-seq": event.seq, "data-code": event.code }, time, " ", make("code", {}, event.code), " ",
      make("span", {}, event.message), event.attempt > 1 ? make("small", { class: "dim" }, ` attempt ${event.attempt}`) : null);
    localTimes(item);
    admit(item);
    list.append(item);
    while (list.children.length > MOST_SHOWN) list.firstElementChild.remove();
    if (following) toEnd();
    else down.hidden = false;
    tell();
    if (ENDS.has(event.code)) over = true;
  }

  // A reader who scrolls up reads: the list stands still until they come back to its end.
  log.addEventListener("scroll", () => { following = atEnd(); if (following) down.hidden = true; });
  down.addEventListener("click", () => { following = true; down.hidden = true; toEnd(); log.focus({ preventScroll: true }); });
  kind.addEventListener("change", sift);
  text.addEventListener("input", sift);

  for (const item of list.children) admit(item);
  filter.hidden = false;
  toEnd();
  tell();
  const last = list.lastElementChild?.dataset.seq ?? 0;
  if (over && list.children.length < Number(section.dataset.eventsPage)) return;
  const source = new EventSource(`${section.dataset.events}?after=${last}`);
  source.addEventListener("message", (message) => add(JSON.parse(message.data)));
  // The browser connects again by itself, and says where it was; to a job that has ended there is nothing to come back for.
  source.addEventListener("error", () => { if (over || ended()) source.close(); });
  addEventListener("pagehide", () => source.close());
}

listen(document.querySelector("[data-events]"));
follow(document.querySelector("[data-curves]"), ended);
