// A job's metric series as charts, thinned out by the server and drawn on while it runs. What is zoomed stays zoomed.
import { call, make } from "./actions.js";
import { colour, draw, seriesOf } from "./charts.js";

const POINTS = 500;
const PAUSE_MS = 2500;
const RANK = [/^loss$/, /^validation_/, /^test_/, /^(?!learning_rate|examples_per_second|distillation)/];

const rank = (name) => { const found = RANK.findIndex((pattern) => pattern.test(name)); return found < 0 ? RANK.length : found; };
const inWords = (name) => name.replaceAll("_", " ");
const base = (arm) => arm.split("-")[0];

// Below the name of the horizontal axis.
export const LEGEND = { showlegend: true, legend: { orientation: "h", y: -0.32, yanchor: "top", x: 0 } };

// plotly is large: it comes when there may be something to draw, after the page can be used.
let coming = null;
export function plotly(address) {
  coming ??= new Promise((resolve, reject) => {
    const script = make("script", { src: address });
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new Error("The drawing library did not come.")));
    document.head.append(script);
  });
  return coming;
}

// Each training counts its steps from 1. Those of one arm are laid one after another, and a line stands between them.
export function endToEnd(points) {
  const found = seriesOf(points).sort((a, b) => a.arm.localeCompare(b.arm) || a.stage - b.stage || a.phase - b.phase);
  const ends = new Map();
  const marks = new Map();
  const phases = new Map();
  for (const { stage, phase } of found) phases.set(stage, Math.max(phases.get(stage) ?? 0, phase));
  const several = found.some((series) => series.stage > 0 || series.phase > 0);
  const unit = ({ stage, phase }) => `stage ${stage + 1}${phases.get(stage) ? `, phase ${phase + 1}` : ""}`;
  for (const series of found) {
    const begin = ends.get(series.arm) ?? 0;
    ends.set(series.arm, begin + series.x.at(-1));
    series.steps = series.x;
    series.x = series.x.map((step) => begin + step);
    if (begin && !marks.has(begin)) marks.set(begin, unit(series));
    if (several) series.name = `${series.arm}, ${unit(series)}`;
  }
  return { series: found, marks };
}

function chartOf(name, points, logarithmic) {
  const { series, marks } = endToEnd(points);
  const arms = [...new Set(series.map(({ arm }) => arm))];
  for (const one of series) {
    const shade = colour(base(one.arm), arms.indexOf(one.arm));
    one.trace = {
      legendgroup: one.arm,
      line: { color: shade, width: one.stage || one.phase ? 2.6 : 1.8, dash: base(one.arm) === "distilled" ? "solid" : base(one.arm) === "teacher" ? "dot" : "dash" },
      marker: { color: shade, size: 9 },
      hovertemplate: "%{y:.5g}",
    };
  }
  const line = getComputedStyle(document.documentElement).getPropertyValue("--dim").trim();
  return {
    title: `${inWords(name)} by step`,
    x: "step",
    y: inWords(name),
    yType: logarithmic ? "log" : "linear",
    series,
    height: 330,
    layout: {
      ...LEGEND,
      showlegend: series.length > 1,
      // While this stays the same plotly keeps what the reader has zoomed or hidden.
      uirevision: `${name}-${logarithmic}`,
      shapes: [...marks.keys()].map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: line, width: 1, dash: "dot" } })),
      annotations: [...marks].map(([x, text]) => ({ x, yref: "paper", y: 1, text, showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11, color: line } })),
      margin: { l: 56, r: 12, t: 22, b: 44 },
    },
  };
}

// The same numbers for whoever does not see the chart.
export function table(series) {
  const head = ["Series", "Points", "First", "Last", "Lowest", "Highest"];
  const short = (value) => Number(value.toPrecision(5)).toString();
  const summary = make("table", { class: "data" },
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...series.map(({ name, y }) => make("tr", {}, make("th", { scope: "row" }, name),
      ...[y.length, y[0], y.at(-1), Math.min(...y), Math.max(...y)].map((value) => make("td", { class: "num" }, short(value)))))));
  const rows = series.flatMap(({ name, steps, y }) => steps.map((step, at) => make("tr", {},
    make("td", {}, name), make("td", { class: "num" }, `${step}`), make("td", { class: "num" }, short(y[at])))));
  const all = make("table", { class: "data" },
    make("thead", {}, make("tr", {}, ...["Series", "Step", "Value"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows));
  return [summary, all].map((one, at) => make("div", { class: at ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": at ? "All points that are shown" : "Summary of each series" }, one));
}

export function follow(section, ended) {
  const said = section.querySelector("[data-curves-said]");
  const picker = section.querySelector("[data-metrics]");
  const scale = section.querySelector("[data-scale]");
  const charts = section.querySelector("[data-charts]");
  const figures = new Map();
  // Another chart beside it makes one narrower, and plotly looks at the window alone.
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = target.querySelector(".js-plotly-plot");
      if (plot?.offsetWidth) Plotly.Plots.resize(plot);
    }
  });
  const asked = new URL(location.href).searchParams.get("metrics");
  let chosen = asked === null ? null : new Set(asked.split(",").filter(Boolean));
  let names = [];
  let loading = null;
  let again = false;

  const read = async (query) => (await call("GET", `${section.dataset.curves}?${new URLSearchParams(query)}`)).data;

  function offer(found) {
    const sorted = [...found].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    chosen ??= sorted.length ? new Set([sorted[0], sorted.find((name) => name.startsWith("validation_"))].filter(Boolean)) : null;
    if (sorted.join() === names.join()) return;
    // A quality first appears after the first epoch: who has chosen nothing by hand sees it then.
    if (asked === null && !picker.dataset.touched && chosen) {
      const quality = sorted.find((name) => name.startsWith("validation_"));
      if (quality) chosen.add(quality);
    }
    names = sorted;
    picker.replaceChildren(picker.querySelector("legend"), ...names.map((name) => {
      const box = make("input", { type: "checkbox", value: name });
      box.checked = chosen.has(name);
      return make("label", {}, box, ` ${inWords(name)}`);
    }));
    picker.hidden = scale.hidden = !names.length;
  }

  function figureOf(name) {
    if (!figures.has(name)) {
      const numbers = make("details", {}, make("summary", {}, `Numbers of ${inWords(name)}`));
      const caption = make("figcaption", {}, `${inWords(name)} over the steps of training, by arm. Drag to zoom, double-click to see all.`);
      const figure = make("figure", {}, caption, numbers);
      numbers.addEventListener("toggle", () => fill(figure));
      figures.set(name, figure);
      resized.observe(figure);
    }
    return figures.get(name);
  }

  function fill(figure) {
    const numbers = figure.querySelector("details");
    if (numbers.open) numbers.replaceChildren(numbers.querySelector("summary"), ...table(figure.shown));
  }

  async function show() {
    // At two points a series only names come, and how many there are.
    offer(new Set((await read({ points: 2 })).map((point) => point.name)));
    if (!names.length) {
      said.textContent = ended() ? "It ended before training began: there are no curves." : "There are none before training begins.";
      return;
    }
    const wanted = names.filter((name) => chosen.has(name));
    const [points] = await Promise.all([
      Promise.all(wanted.map((name) => read({ name, points: POINTS }))),
      plotly(section.dataset.plotly),
    ]);
    for (const [name, figure] of figures) if (!wanted.includes(name)) figure.remove();
    const logarithmic = scale.querySelector("input").checked;
    for (const [at, name] of wanted.entries()) {
      const figure = figureOf(name);
      if (charts.children[at] !== figure) charts.insertBefore(figure, charts.children[at] ?? null);
    }
    for (const [at, name] of wanted.entries()) {
      const figure = figureOf(name);
      const chart = chartOf(name, points[at], logarithmic);
      figure.shown = chart.series;
      await draw(figure, chart);
      fill(figure);
    }
    said.textContent = wanted.length ? "" : "Choose what to see.";
    section.dataset.drawn = wanted.join();
  }

  // One at a time; what is asked for meanwhile is done once, after it.
  function load() {
    if (loading) { again = true; return; }
    loading = show()
      .catch((problem) => { said.textContent = problem.message; })
      .finally(() => {
        loading = null;
        if (again) { again = false; load(); }
      });
  }

  picker.addEventListener("change", () => {
    picker.dataset.touched = "yes";
    chosen = new Set([...picker.querySelectorAll("input:checked")].map((box) => box.value));
    const address = new URL(location.href);
    address.searchParams.set("metrics", [...chosen].join());
    history.replaceState(null, "", address);
    load();
  });
  scale.addEventListener("change", load);

  if (section.dataset.begun) plotly(section.dataset.plotly).catch(() => { coming = null; });
  let timer = null;
  document.addEventListener("refreshed", () => { timer ??= setTimeout(() => { timer = null; load(); }, PAUSE_MS); });
  load();
}
