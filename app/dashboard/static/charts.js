// Line and scatter charts by plotly, in the colours of the theme, live, and with the same numbers as a table.
//
// <figure data-chart> holds a <script type="application/json"> with {title, x, y, series: [{name, arm?, x: […], y: […]}]},
// or `draw(figure, chart)` is called with that object. `plotly.min.js` is loaded by the page (defer), as `Plotly`.

const ORDER = ["--chart-1", "--chart-2", "--chart-3", "--chart-4", "--chart-5", "--chart-6"];
const ARMS = { distilled: "--chart-1", control: "--chart-2", teacher: "--chart-3", untrained: "--chart-4" };
const DASHES = { control: "dash", teacher: "dot", untrained: "dashdot" };
const drawn = new Map();

function value(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function colour(arm, position) {
  return value(ARMS[arm] ?? ORDER[position % ORDER.length]);
}

function layout(chart) {
  const axis = { gridcolor: value("--line"), zerolinecolor: value("--line"), linecolor: value("--line"), automargin: true };
  return {
    autosize: true,
    height: chart.height ?? 300,
    margin: { l: 52, r: 12, t: 12, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: value("--font"), size: 12, color: value("--text") },
    xaxis: { ...axis, title: { text: chart.x ?? "" }, type: chart.xType ?? "linear" },
    yaxis: { ...axis, title: { text: chart.y ?? "" }, type: chart.yType ?? "linear" },
    legend: { orientation: "h", y: -0.22 },
    hovermode: chart.hover ?? "x unified",
    hoverlabel: { bgcolor: value("--surface"), bordercolor: value("--line"), font: { color: value("--text") } },
    showlegend: chart.series.length > 1,
    ...(chart.layout ?? {}),
  };
}

function traces(chart) {
  return chart.series.map((series, position) => ({
    type: series.x.length > 1000 ? "scattergl" : "scatter",
    mode: series.mode ?? (series.x.length > 1 ? "lines" : "markers"),
    name: series.name,
    x: series.x,
    y: series.y,
    text: series.text,
    line: { color: colour(series.arm, position), width: 2, dash: DASHES[series.arm] ?? "solid" },
    marker: { color: colour(series.arm, position), size: 9 },
    ...(series.trace ?? {}),
  }));
}

// Draws, or draws anew. `figure` needs no content: the box is made in it.
export function draw(figure, chart) {
  let box = figure.querySelector(":scope > .plot");
  if (!box) {
    box = document.createElement("div");
    box.className = "plot";
    box.setAttribute("role", "img");
    figure.prepend(box);
  }
  box.setAttribute("aria-label", chart.title ?? "chart");
  drawn.set(figure, chart);
  return Plotly.react(box, traces(chart), layout(chart), { displaylogo: false, responsive: true, displayModeBar: false });
}

export function drawAll(root = document) {
  for (const figure of root.querySelectorAll("figure[data-chart]")) {
    const data = figure.querySelector(":scope > script[type='application/json']");
    if (data) draw(figure, JSON.parse(data.textContent));
  }
}

// Points of the API's metric series → one series for each (arm, stage, phase).
export function seriesOf(points, label = (point) => point.arm) {
  const found = new Map();
  for (const point of points) {
    const key = `${label(point)}|${point.stage}|${point.phase}`;
    if (!found.has(key)) found.set(key, { name: label(point), arm: point.arm, stage: point.stage, phase: point.phase, x: [], y: [] });
    const series = found.get(key);
    series.x.push(point.step);
    series.y.push(point.value);
  }
  return [...found.values()];
}

document.addEventListener("themed", () => { for (const [figure, chart] of drawn) if (figure.isConnected) draw(figure, chart); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themed")));
