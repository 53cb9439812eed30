// Several jobs on one chart, and what quality costs.
import { call, make } from "./actions.js";
import { colour, draw } from "./charts.js";
import { endToEnd, LEGEND, plotly, table } from "./curves.js";

const POINTS = 400;
const ENDED = /^(succeeded|failed|cancelled|job deleted)$/;

const inWords = (name) => name.replaceAll("_", " ");

// --- scatter: the server has computed it, the front too ---------------------------------------------------------------

const scatters = [...document.querySelectorAll("figure[data-chart]")];

const SYMBOLS = ["circle", "square", "triangle-up", "cross", "star"];

// Each student has a colour and a shape of its own, so that the legend names it without text among the points.
function drawScatter(figure, text) {
  figure.dataset.text = text;
  const chart = JSON.parse(text);
  for (const [at, series] of chart.series.entries()) {
    if (!series.student) continue;
    const shade = colour(null, at);
    series.trace = { ...series.trace, marker: { color: shade, size: 10, symbol: SYMBOLS[Math.floor(at / 6) % SYMBOLS.length] } };
  }
  draw(figure, { ...chart, layout: LEGEND });
}

async function drawScatters() {
  if (!scatters.length) return;
  const source = document.querySelector("[data-plotly]")?.dataset.plotly;
  if (!source) return;
  await plotly(source);
  for (const figure of scatters) drawScatter(figure, figure.querySelector("script").textContent);
}

// --- curves -----------------------------------------------------------------------------------------------------------

function overlay(section) {
  const jobs = JSON.parse(section.dataset.compared);
  const labels = new Map(Object.entries(jobs));
  const metric = section.querySelector("[data-metric]");
  const arm = section.querySelector("[data-arm]");
  const figure = section.querySelector("[data-overlay]");
  const said = section.querySelector("[data-curves-said]");
  const numbers = figure.querySelector("details");
  let shown = [];

  function options(select, values) {
    const before = select.value;
    select.replaceChildren(...values.map((value) => make("option", { value }, inWords(value))));
    if (values.includes(before)) select.value = before;
    select.disabled = values.length < 2;
  }

  async function names() {
    const found = await Promise.all([...labels.keys()].map((id) => call("GET", `/jobs/${encodeURIComponent(id)}/metrics?points=2`)));
    const all = new Set(found.flatMap(({ data }) => data.map((point) => point.name)));
    const first = (name) => (name === "loss" ? 0 : name.startsWith("validation_") ? 1 : 2);
    options(metric, [...all].sort((a, b) => first(a) - first(b) || a.localeCompare(b)));
    return all.size;
  }

  async function show() {
    const query = new URLSearchParams({ ids: [...labels.keys()].join(), name: metric.value, points: POINTS });
    const { data } = await call("GET", `/metrics/jobs?${query}`);
    const arms = [...new Set(data.map((point) => point.arm))].sort((a, b) => (b === "distilled") - (a === "distilled") || a.localeCompare(b));
    options(arm, arms);
    const points = data.filter((point) => point.arm === arm.value).map((point) => ({ ...point, arm: labels.get(point.job_id) }));
    if (!points.length) return;
    const { series, marks } = endToEnd(points);
    const names = [...labels.values()];
    await plotly(section.dataset.plotly);
    shown = series;
    const grey = getComputedStyle(document.documentElement).getPropertyValue("--dim").trim();
    for (const one of series) {
      const at = names.indexOf(one.arm);
      const color = colour(null, at);
      // One entry for each job, whatever stages it has; it hides and shows them together.
      one.trace = { legendgroup: one.arm, name: one.arm, showlegend: series.find(({ arm }) => arm === one.arm) === one, line: { color, width: 2, dash: at < 6 ? "solid" : "dash" }, marker: { color, size: 9 }, hovertemplate: "%{y:.5g}" };
    }
    figure.hidden = false;
    await draw(figure, {
      title: `${inWords(metric.value)} of ${arm.value} by step`, x: "step", y: inWords(metric.value), series, height: 360,
      layout: { ...LEGEND, uirevision: `${metric.value}-${arm.value}`,
        shapes: [...marks.keys()].map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: grey, width: 1, dash: "dot" } })) },
    });
    said.textContent = "";
    section.dataset.drawn = metric.value;
    fill();
  }

  function fill() {
    if (numbers.open) numbers.replaceChildren(numbers.querySelector("summary"), ...table(shown));
  }

  const trouble = (problem) => { said.textContent = problem.message; };
  const load = () => show().catch(trouble);
  metric.addEventListener("change", load);
  arm.addEventListener("change", load);
  numbers.addEventListener("toggle", fill);
  // Most have a loss: it is drawn at once, and what else there is to choose comes after it.
  (async () => {
    await Promise.all([load(), names()]);
    if (!shown.length) said.textContent = "None of them has curves yet.";
  })().catch(trouble);

  let timer = null;
  const lives = () => [...document.querySelectorAll("#figures .badge[data-status]")].some((badge) => !ENDED.test(badge.dataset.status));
  let lived = lives();
  document.addEventListener("refreshed", () => {
    if (!lived) return;
    lived = lives();
    timer ??= setTimeout(async () => { timer = null; if (await names().catch(trouble)) load(); }, 2500);
  });
}

drawScatters();
const section = document.querySelector("[data-compared]");
if (section) overlay(section);
document.addEventListener("refreshed", ({ detail: fresh }) => {
  for (const figure of scatters) {
    const text = fresh.querySelector(`#${figure.id} script`)?.textContent;
    if (text && text !== figure.dataset.text) drawScatter(figure, text);
  }
});
