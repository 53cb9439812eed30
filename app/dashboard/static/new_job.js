// The form for a job. There is one document, the spec; form and texts only show it, and each edit makes a new one.
import { call, make } from "./actions.js";
import { asPhases, asStages, get, isObject, long, put, withoutDefaults } from "./spec_document.js";
import { fields, follow, read, show } from "./spec_editor.js";
import { problemsShown, showEstimates, showProblems } from "./spec_verdict.js";
import { asCurl, asJson, asPython, asYaml } from "./spec_texts.js";

const form = document.querySelector("[data-form]");
const facts = form ? JSON.parse(document.querySelector("[data-facts]").textContent) : null;
const find = (selector) => form.querySelector(selector);
const all = (selector) => [...form.querySelectorAll(selector)];
const json = form && find("[data-json]");

let spec = facts?.spec;
let readable = true; // whether the text of the JSON tab is a document
let resolved = null;
let asked = 0;
let timer = null;
let byHand = false;
let key = newKey();

// One for each opening of the page: to submit twice makes one job.
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// --- the document -----------------------------------------------------------------------------------------------------

function change(now, { rebuilt = false, typed = false } = {}) {
  spec = now;
  if (!typed) json.value = asJson(spec);
  find("[data-copy-json]").dataset.copy = asJson(spec);
  const base = facts.base;
  for (const [name, text] of Object.entries({ curl: asCurl(spec, base), python: asPython(spec, base), yaml: asYaml(spec) })) {
    find(`[data-text=${name}]`).textContent = text;
    find(`[data-copy-text=${name}]`).dataset.copy = text;
  }
  if (rebuilt) rebuild();
  fill();
  clearTimeout(timer);
  timer = setTimeout(validate, 300);
}

function restructure(pointer, value) {
  let now = spec;
  // The ways to say how it is taught exclude each other.
  const [, part] = pointer.match(/^((?:\/stages\/\d+)?)\/(?:method|objectives|phases)$/) ?? [];
  if (part !== undefined && value !== undefined) {
    for (const name of ["method", "objectives", "phases"]) if (!pointer.endsWith(`/${name}`)) now = put(now, `${part}/${name}`, undefined);
    if (pointer.endsWith("/phases")) now = put(now, `${part}/schedule`, undefined);
  }
  if (pointer === "/stages" && value !== undefined) change(asStages(spec), { rebuilt: true });
  else change(put(now, pointer, value), { rebuilt: true });
}

// --- the form shows it ------------------------------------------------------------------------------------------------

const editor = { root: facts?.schema, get: (pointer) => get(spec, pointer), restructure };

function rebuild() {
  const at = document.activeElement?.dataset?.at;
  for (const part of all("[data-part]")) {
    const box = part.querySelector("[data-fields]");
    const inside = box.contains(document.activeElement);
    const names = part.dataset.part.split(" ").filter((name) => name in spec || !isSaidElsewhere(name));
    box.replaceChildren(...names.flatMap((name) => fields(editor, facts.schema.properties[name], `/${name}`, name, ["task", "dataset", "teachers"].includes(name))));
    if (inside) (at ? box.querySelector(`[data-at="${CSS.escape(at)}"]`) : part.querySelector("summary"))?.focus();
  }
}

// Stages have all of this themselves, and phases their schedule.
function isSaidElsewhere(name) {
  return (spec.stages != null && ["student", "method", "objectives", "phases", "schedule"].includes(name)) || (spec.phases != null && name === "schedule");
}

function fill() {
  fillColumns();
  for (const input of all("[data-at]")) show(input, get(spec, input.dataset.at));
  show(find("[data-task-kind]"), get(spec, "/task/kind"));
  const known = dataset();
  find("[data-dataset-facts]").textContent = known ? `${known.rows.toLocaleString()} rows: ${known.columns.map((column) => column.name).join(", ")}` : "";
  document.getElementById("columns").replaceChildren(...(known?.columns ?? []).map((column) => make("option", { value: column.name }, column.type)));
  fillTeacher();
  fillStudent();
  const promoted = isObject(spec.promote);
  find("[data-promote]").checked = promoted;
  find("[data-promoted]").hidden = !promoted;
}

function dataset() {
  const id = get(spec, "/dataset/id") ?? get(spec, "/dataset/train");
  return facts.datasets.find((one) => one.id === id);
}

// A choice for each column that the kind of task reads.
function fillColumns() {
  const box = find("[data-columns]");
  const kind = get(spec, "/task/kind");
  const places = [...(facts.places[kind] ?? [])];
  const columns = dataset()?.columns ?? [];
  if (kind === "text-classification" || kind === "text-regression") places.push("text_pair");
  const made = JSON.stringify([kind, columns]);
  if (box.dataset.made === made) return;
  box.dataset.made = made;
  box.replaceChildren(...places.map((place) => {
    const optional = place === "text_pair";
    const select = make("select", { "data-at": `/task/${place}`, "data-required": !optional });
    if (optional) select.append(make("option", { value: "" }, "none"));
    for (const column of columns) select.append(make("option", { value: column.name }, `${column.name} · ${column.type}`));
    return make("label", { class: "field" }, make("span", {}, optional ? "Second text" : place.charAt(0).toUpperCase() + place.slice(1)), select);
  }));
}

function fillTeacher() {
  const teachers = Array.isArray(spec.teachers) ? spec.teachers : [];
  const first = teachers[0] ?? {};
  const one = teachers.length <= 1 && (first.kind ?? "local") === "local";
  find("[data-one-teacher]").hidden = !one;
  const others = find("[data-other-teachers]");
  others.hidden = one;
  others.textContent = teachers.length > 1 ? `An ensemble of ${teachers.length} teachers. They are below under Teachers.` : `A teacher of the kind “${first.kind}”. It is below under Teachers.`;
  find("[data-fine-tune]").checked = isObject(first.fine_tune);
  find("[data-when-fine-tuned]").hidden = !isObject(first.fine_tune);
}

function fillStudent() {
  const stages = spec.stages != null;
  for (const part of all("[data-one-stage]")) part.hidden = stages;
  for (const part of all("[data-has-stages]")) part.hidden = !stages;
  const student = isObject(spec.student) ? spec.student : {};
  const size = Object.entries(facts.sizes).find(([, its]) => JSON.stringify(its) === JSON.stringify({ layers: student.layers, vocabulary: student.vocabulary }) && Object.keys(student).length === 3)?.[0];
  const cut = (student.kind ?? "from_teacher") === "from_teacher";
  const shown = byHand || !size ? "hand" : size;
  for (const radio of all("[name=size]")) radio.checked = radio.value === shown;
  find("[data-by-hand]").hidden = shown !== "hand" || !cut;
  const other = find("[data-other-student]");
  const more = Object.keys(student).filter((name) => !["kind", "layers", "vocabulary"].includes(name));
  other.hidden = cut && !more.length;
  other.textContent = cut ? `It also says ${more.join(", ")}; that is below under Student.` : `A student of the kind “${student.kind}”. It is below under Student.`;
  const own = spec.objectives != null || spec.phases != null;
  const method = long("method", spec.method)?.preset ?? (own ? null : "hinton");
  for (const radio of all("[name=method]")) radio.checked = !own && radio.value === method;
  find("[data-own-phases]").hidden = !own || stages;
  find("[data-write-phases]").disabled = stages || spec.phases != null || !resolved;
  find("[data-write-stages]").disabled = stages;
}

// --- what an edit does ------------------------------------------------------------------------------------------------

function edited(event) {
  const input = event.target;
  if (input === json) return event.type === "input" ? typed() : undefined;
  if ("at" in input.dataset) {
    if (event.type === "change" && input.tagName !== "SELECT" && input.type !== "checkbox") return undefined; // "input" has said it
    if ("dataset" in input.dataset) return choose(input.value);
    return change(put(spec, input.dataset.at, read(input)));
  }
  if (event.type !== "change") return undefined;
  if ("taskKind" in input.dataset) return restructure("/task", retasked(input.value, dataset()));
  if ("fineTune" in input.dataset) return restructure("/teachers/0/fine_tune", input.checked ? { epochs: 2 } : undefined);
  if ("promote" in input.dataset) return restructure("/promote", input.checked ? { deployment: deploymentName(), gate: { max_drop: 0.04 } } : undefined);
  if (input.name === "method") return restructure("/method", input.value);
  if (input.name === "size") {
    byHand = input.value === "hand";
    if (!byHand) return restructure("/student", { kind: "from_teacher", ...facts.sizes[input.value] });
    fill();
    find("[data-by-hand] input").focus();
  }
  return undefined;
}

// Another dataset: the task stays if its columns are there too.
function choose(id) {
  const now = put(spec, "/dataset/id", id);
  const chosen = facts.datasets.find((one) => one.id === id);
  const names = new Set(chosen?.columns.map((column) => column.name));
  const places = facts.places[get(spec, "/task/kind")] ?? [];
  const fits = places.length && places.every((place) => names.has(get(spec, `/task/${place}`)));
  const task = fits || !chosen ? spec.task : Object.values(chosen.tasks)[0] ?? spec.task;
  change(put(now, "/task", task), { rebuilt: true });
}

function retasked(kind, its) {
  const empty = Object.fromEntries(facts.places[kind].map((place) => [place, ""]));
  return its?.tasks[kind] ?? { kind, ...empty };
}

function deploymentName() {
  return (spec.name ?? dataset()?.name ?? "").toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-+|-+$/g, "").slice(0, 60) || "student";
}

// The text of the JSON tab. While it cannot be read the form rests: nothing of either is lost.
function typed() {
  const problem = find("[data-json-problem]");
  let parsed;
  try {
    parsed = JSON.parse(json.value);
    if (!isObject(parsed)) throw new Error("a job is an object: { … }");
    readable = true;
  } catch (error) {
    readable = false;
    problem.replaceChildren(`This is not JSON: ${error.message}. The form rests until it is. `, backButton());
  }
  problem.hidden = readable;
  json.setAttribute("aria-invalid", String(!readable));
  find("[data-editable]").disabled = !readable;
  find("[data-submit]").disabled = !readable;
  if (readable) change(parsed, { rebuilt: true, typed: true });
}

function backButton() {
  const button = make("button", { type: "button", class: "small" }, "Back to what the form shows");
  button.addEventListener("click", () => { json.value = asJson(spec); typed(); });
  return button;
}

// --- what the service says --------------------------------------------------------------------------------------------

async function validate() {
  asked += 1;
  const mine = asked;
  const verdict = find("[data-verdict]");
  let answer = null;
  let refusal = null;
  try {
    answer = await call("POST", "/jobs/validate", spec);
  } catch (problem) {
    refusal = problem;
  }
  if (mine !== asked) return;
  resolved = answer?.resolved_spec ?? null;
  showProblems(form, refusal);
  find("[data-resolved]").textContent = resolved ? asJson(resolved) : "";
  find("[data-resolved-box]").hidden = !resolved;
  showEstimates(find("[data-estimates]"), answer);
  verdict.textContent = refusal ? problemsShown(refusal) : "This job can run.";
  verdict.className = refusal ? "callout bad" : "callout good";
  fillStudent();
}

async function submit(event) {
  event.preventDefault();
  if (!readable) return;
  const button = find("[data-submit]");
  const refused = find("[data-refused]");
  button.disabled = true;
  refused.replaceChildren();
  try {
    const job = await call("POST", "/jobs", spec, { "Idempotency-Key": key });
    location.assign(`/ui/jobs/${encodeURIComponent(job.id)}`);
  } catch (problem) {
    showProblems(form, problem);
    refused.replaceChildren(make("p", { class: "callout bad" }, make("b", {}, problem.message), problem.hint ? ` ${problem.hint}` : ""));
    button.disabled = false;
  }
}

// --- tabs -------------------------------------------------------------------------------------------------------------

function select(tab) {
  for (const one of all("[role=tab]")) {
    one.setAttribute("aria-selected", String(one === tab));
    one.tabIndex = one === tab ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
}

function arrows(event) {
  const tabs = all("[role=tab]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tab = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  select(tab);
  tab.focus();
}

function start() {
  find("[data-dataset]").append(...facts.datasets.map((one) => make("option", { value: one.id }, `${one.name || one.id} · ${one.rows.toLocaleString()} rows`)));
  form.addEventListener("input", edited);
  form.addEventListener("change", edited);
  form.addEventListener("submit", submit);
  for (const tab of all("[role=tab]")) tab.addEventListener("click", () => select(tab));
  find("[role=tablist]").addEventListener("keydown", arrows);
  find("[data-write-stages]").addEventListener("click", () => change(asStages(spec), { rebuilt: true }));
  find("[data-write-phases]").addEventListener("click", () => {
    const schema = follow(facts.schema, facts.schema.properties.phases);
    const phases = withoutDefaults(resolved.stages[0].phases, schema, (part, value) => follow(facts.schema, part, value));
    change(asPhases(spec, phases), { rebuilt: true });
  });
  // Back from the job's page, this one is opened anew.
  addEventListener("pageshow", (event) => { if (event.persisted) { key = newKey(); find("[data-submit]").disabled = !readable; } });
  change(spec, { rebuilt: true });
}

if (form) start();
