// A deployment's page: live calls per second, changing where it points, and trying it.
import { ask, call, complaint, make, place, Problem, toast } from "./actions.js";
import { draw } from "./charts.js";
import { refresh } from "./page.js";

// --- now --------------------------------------------------------------------------------------------------------------

const LOOK = 2000;
const KEPT = 90;
const figure = document.querySelector("[data-live-chart]");
const address = document.querySelector("#traffic").dataset.address;
const rates = new Map();
let before = null;

async function look() {
  if (document.hidden) return;
  let now;
  try {
    now = await call("GET", address);
  } catch (problem) {
    if (problem.status === 404) return;
    throw problem;
  }
  const at = performance.now();
  const arms = new Map(now.arms.map((arm) => [arm.arm, arm]));
  if (before && before.version === now.version) {
    const seconds = (at - before.at) / 1000;
    for (const [name, arm] of arms) {
      const rate = Math.max(0, arm.calls - (before.arms.get(name)?.calls ?? 0)) / seconds;
      if (!rates.has(name)) rates.set(name, { name, x: [], y: [], mode: "lines" });
      const series = rates.get(name);
      series.x.push(new Date());
      series.y.push(rate);
      if (series.x.length > KEPT) { series.x.shift(); series.y.shift(); }
    }
  }
  before = { at, arms, version: now.version };
  show(arms);
}

function show(arms) {
  const sum = [...rates.values()].reduce((total, series) => total + (series.y.at(-1) ?? 0), 0);
  document.querySelector("[data-rate]").textContent = rates.size ? sum.toFixed(1) : "0.0";
  const p95 = arms.get("stable")?.p95_ms;
  document.querySelector("[data-p95]").textContent = p95 == null ? "–" : `${p95.toPrecision(3)} ms`;
  if (rates.size) draw(figure, { title: "Calls per second by arm", y: "calls per second", xType: "date", height: 220, series: [...rates.values()] });
}

setInterval(() => look().catch(() => {}), LOOK);
look().catch(() => {});

// --- changing it ------------------------------------------------------------------------------------------------------

const form = document.querySelector("[data-change]");

function present() {
  return JSON.parse(form.querySelector("[data-present]").textContent);
}

// What stays as it is, as the PUT takes it.
function kept(document) {
  const body = { student: document.student };
  for (const part of ["gate", "fallback", "capture", "canary", "shadow", "auto"]) if (document[part]) body[part] = document[part];
  return body;
}

async function put(body, said) {
  await call("PUT", form.dataset.address, body, { "If-Match": `"${form.dataset.version}"` });
  toast(said);
  location.reload();
}

function wanted() {
  const field = (name) => form.elements[name];
  const { canary, shadow, auto, fallback, capture, ...body } = kept(present());
  body.student = field("student").value;
  const kind = field("kind").value;
  if (kind) body[kind] = { student: field("candidate").value, fraction: Number(field("fraction").value) / 100 };
  if (kind && field("auto").checked) body.auto = auto ?? {};
  if (field("fallback").value) body.fallback = { to: "teacher", threshold: Number(field("threshold").value) };
  const sample = Number(field("sample").value) / 100;
  if (sample > 0) body.capture = { ...(capture ?? {}), sample };
  if (field("override").value) body.override = field("override").value;
  return body;
}

function showWhen() {
  for (const part of form.querySelectorAll("[data-when]")) part.hidden = !form.elements[part.dataset.when].value;
}

function showProblems(problem) {
  form.querySelector("[data-problems]").replaceChildren(complaint(problem, place(form, problem)));
  if (problem.code === "gate_failed" || problem.errors.some((item) => item.code?.startsWith("gate"))) form.querySelector("[data-override]").hidden = false;
  if (problem.code === "version_mismatch") refresh();
}

if (form) {
  showWhen();
  form.addEventListener("change", showWhen);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    for (const place of form.querySelectorAll(".problem")) place.remove();
    form.querySelector("[data-problems]").replaceChildren();
    const body = wanted();
    const moved = body.student !== present().student;
    if (moved && !(await ask(`Move ${present().name} to another student?`, "Its callers are answered by the new student within a second. A rollback is one click.", "Move it"))) return;
    try { await put(body, "Changed"); } catch (problem) { if (problem instanceof Problem) showProblems(problem); else throw problem; }
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-move]");
    if (!button) return;
    const candidate = button.closest("[data-candidate]").dataset.candidate;
    const { canary, shadow, auto, ...body } = kept(present());
    const promote = button.dataset.move === "promote";
    if (promote) { body.student = candidate; delete body.fallback; }
    const question = promote ? "Promote the candidate?" : "End the candidate?";
    if (!(await ask(question, promote ? "It answers all calls within a second. Its gate must hold." : "All calls are answered by the stable student again.", promote ? "Promote" : "End it"))) return;
    try { await put(body, promote ? "Promoted" : "Ended"); } catch (problem) { if (problem instanceof Problem) showProblems(problem); else throw problem; }
  });
}

// --- trying it --------------------------------------------------------------------------------------------------------

const trying = document.querySelector("[data-try]");
trying?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = trying.elements.input.value;
  let inputs = text;
  if (text.trim().startsWith("{")) { try { inputs = JSON.parse(text); } catch { /* it is a text, then */ } }
  const box = trying.querySelector("[data-answers]");
  const began = performance.now();
  try {
    const answers = await call("POST", trying.dataset.try, { inputs });
    const took = performance.now() - began;
    box.replaceChildren(answerTable(answers), make("p", { class: "dim" }, `${took.toFixed(1)} ms there and back`));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    box.replaceChildren(complaint(problem));
  }
});

// Of labels, entities or an answer: one row each, whatever its members are.
function answerTable(answers) {
  const rows = [answers].flat(2);
  if (!rows.length) return make("p", {}, "Nothing was found in it.");
  const names = Object.keys(rows[0]);
  const cell = (value) => (typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value));
  return make("table", { class: "data" },
    make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...names.map((name) => make("td", {}, cell(row[name])))))));
}
