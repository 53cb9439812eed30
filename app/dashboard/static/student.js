// A student's page: charts, trying it beside its teacher, the rows on which the two differ, deploying, verifying.
import { call, complaint, make, Problem, toast } from "./actions.js";
import { drawAll } from "./charts.js";

addEventListener("DOMContentLoaded", () => drawAll());
if (document.readyState !== "loading" && window.Plotly) drawAll();

// --- trying it --------------------------------------------------------------------------------------------------------

const trying = document.querySelector("[data-try]");

function given() {
  const { question, context, text, text_pair: pair } = trying.elements;
  if (question) return { question: question.value, context: context.value };
  return pair.value ? { text: text.value, text_pair: pair.value } : text.value;
}

function answerList(answers) {
  const rows = [answers].flat(3);
  if (!rows.length) return make("p", { class: "dim" }, "Nothing was found in it.");
  return make("ul", { class: "list" }, ...rows.map((row) => {
    const name = row.label ?? (row.answer !== undefined ? row.answer || "(no answer)" : `${row.word ?? ""} · ${row.entity_group ?? row.entity ?? ""}`);
    return make("li", {}, name, make("span", { class: "end" }, Number(row.score).toFixed(4)));
  }));
}

trying?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = trying.querySelector("[data-answers]");
  box.replaceChildren(make("p", { class: "dim" }, "Asking…"));
  try {
    const found = await call("POST", trying.dataset.try, { inputs: given() });
    const cards = [["Student", found.student], ["Teacher", found.teacher]].map(([name, one]) =>
      make("div", {}, make("h3", {}, name), one ? answerList(one.answers) : make("p", { class: "dim" }, found.teacher_reason ?? ""),
        one ? make("p", { class: "dim" }, `${one.milliseconds.toFixed(2)} ms`) : null));
    box.replaceChildren(...cards);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    box.replaceChildren(complaint(problem));
  }
});

// --- disagreements ----------------------------------------------------------------------------------------------------

const browser = document.querySelector("[data-disagreements]");

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.map(shown).join(", ");
  if ("label" in value) return `${value.label}${value.score === undefined ? "" : ` (${Number(value.score).toFixed(2)})`}`;
  return Object.entries(value).map(([key, inner]) => `${key}: ${shown(inner)}`).join(" · ");
}

function inputOf(value) {
  return typeof value === "string" ? value : Object.values(value ?? {}).filter((part) => part !== null).map(shown).join(" · ");
}

async function more(fresh) {
  const rows = browser.querySelector("[data-rows]");
  const button = browser.querySelector("[data-more]");
  const right = browser.querySelector("[data-right]").value;
  if (fresh) { rows.replaceChildren(); delete browser.dataset.after; }
  const query = new URLSearchParams({ limit: 20, ...(right ? { right } : {}), ...(browser.dataset.after ? { after: browser.dataset.after } : {}) });
  let page;
  try {
    page = await call("GET", `${browser.dataset.disagreements}?${query}`);
  } catch (problem) {
    rows.replaceChildren(make("p", { class: "dim" }, problem.message));
    return;
  }
  let table = rows.querySelector("tbody");
  if (!table && page.data.length) {
    table = make("tbody", {});
    const heads = ["Input", "True", "Teacher", "Student", "Right"].map((name) => make("th", { scope: "col" }, name));
    rows.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows on which student and teacher differ" },
      make("table", { class: "data" }, make("thead", {}, make("tr", {}, ...heads)), table)));
  }
  if (!table) rows.replaceChildren(make("p", { class: "dim" }, "There is no such row."));
  for (const row of page.data) {
    table.append(make("tr", {}, make("td", {}, inputOf(row.input)), make("td", {}, shown(row.truth)), make("td", {}, shown(row.teacher)),
      make("td", {}, shown(row.student)), make("td", {}, row.right ?? "–")));
    browser.dataset.after = row.row;
  }
  button.hidden = !page.has_more;
}

browser?.addEventListener("toggle", () => { if (browser.open && !browser.querySelector("[data-rows]").children.length) more(true); });
browser?.querySelector("[data-right]").addEventListener("change", () => more(true));
browser?.querySelector("[data-more]").addEventListener("click", () => more(false));

// --- what it saves ----------------------------------------------------------------------------------------------------

const reckoning = document.querySelector("[data-economics]");
reckoning?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = reckoning.querySelector("[data-reckoned]");
  try {
    const found = await call("GET", `${reckoning.dataset.economics}?${new URLSearchParams(new FormData(reckoning))}`);
    const amount = (value) => (value === null ? "–" : Number(value).toLocaleString(undefined, { maximumFractionDigits: 2 }));
    const figures = [["Teacher, a month", found.teacher_cost_per_month], ["Student, a month", found.student_cost_per_month], ["Saved, a month", found.saving_per_month], ["Pays from, calls a month", found.break_even_calls_per_month], ["Hosts", found.hosts]];
    box.replaceChildren(make("p", { class: "verdict" }, found.verdict),
      make("dl", { class: "stats" }, ...figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, amount(value))))));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    box.replaceChildren(complaint(problem));
  }
});

// --- deploying, verifying ---------------------------------------------------------------------------------------------

const deploying = document.querySelector("[data-deploy]");
deploying?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = deploying.elements.name.value;
  const body = { student: deploying.dataset.deploy };
  if (deploying.elements.override.value) body.override = deploying.elements.override.value;
  try {
    await call("PUT", `/deployments/${encodeURIComponent(name)}`, body);
    location.assign(`/ui/deployments/${encodeURIComponent(name)}`);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    deploying.querySelector("[data-problems]").replaceChildren(complaint(problem));
    if (problem.code === "gate_failed" || problem.errors.some((item) => item.code?.startsWith("gate"))) deploying.querySelector("[data-override]").hidden = false;
  }
});

document.querySelector("[data-verify]")?.addEventListener("click", async (event) => {
  const said = document.querySelector("[data-verified]");
  said.textContent = "Reading every file…";
  try {
    const found = await call("POST", event.target.dataset.verify);
    const wrong = found.files.filter((file) => !file.ok);
    said.textContent = found.ok ? `All ${found.files.length} files are as they were published.` : `${wrong.length} files differ: ${wrong.map((file) => file.path).join(", ")}`;
  } catch (problem) {
    said.textContent = "";
    toast(problem.message, "bad", problem.hint);
  }
});
