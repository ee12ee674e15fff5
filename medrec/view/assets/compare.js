// Runs of one cohort side by side.
import {
  el, facts, figure, fill, get, heading, note, number, post, section, table,
} from "./core.js";
import { METRICS } from "./runs.js";

const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999"];
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon"];

export async function comparePage(place, query) {
  place.append(heading("Compare", "Finished training runs of one cohort, with intervals."));
  const body = el("div");
  place.append(body);
  await fill(body, "Reading the runs", async () => {
    const all = (await get("/api/runs")).runs
      .filter((run) => run.kind === "train" && run.status === "finished");
    if (!all.length) return section("", note("There is no finished training run yet."));
    return chooser(all, query);
  });
  return "Compare";
}

function chooser(all, query) {
  const cohorts = [...new Set(all.map((run) => run.cohort))];
  const asked = (query.get("runs") || "").split(",").filter(Boolean);
  const first = all.find((run) => asked.includes(run.name)) || all[0];
  const cohort = el("select", { id: "cohort" },
    cohorts.map((name) => el("option", { value: name, selected: name === first.cohort }, name)));
  const choices = el("fieldset", { class: "choices" });
  const reference = el("select", { id: "reference" });
  const result = el("div");
  const button = el("button", { type: "submit", class: "main" }, "Compare");
  const chosen = () => [...choices.querySelectorAll("input:checked")].map((box) => box.value);
  const redraw = () => {
    const own = all.filter((run) => run.cohort === cohort.value);
    const some = own.some((run) => asked.includes(run.name));
    choices.replaceChildren(el("legend", {}, "Runs"), ...own.map((run) => el("label", {},
      el("input", { type: "checkbox", value: run.name,
        checked: some ? asked.includes(run.name) : true }), run.name)));
    const wanted = query.get("reference") || usual(own);
    reference.replaceChildren(...own.map((run) =>
      el("option", { value: run.name, selected: run.name === wanted }, run.name)));
  };
  const run = () => {
    const names = chosen();
    if (names.length && !names.includes(reference.value)) reference.value = names[0];
    const state = new URLSearchParams({ runs: names.join(","), reference: reference.value });
    history.replaceState(null, "", `#/compare?${state}`);
    return fill(result, "Comparing", async () => {
      const found = await post("/api/compare", { runs: names, reference: reference.value });
      return comparison(found);
    });
  };
  cohort.addEventListener("change", redraw);
  redraw();
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); run(); } },
    el("div", { class: "bar" }, el("label", { for: "cohort" }, "Cohort"), cohort,
      el("label", { for: "reference" }, "Differences to"), reference, button), choices);
  run();
  return [section("", form), result];
}

const usual = (runs) =>
  (runs.find((run) => run.model === "logistic_regression") || runs[0])?.name;

function comparison(found) {
  const { header, rows, reference } = found;
  const { caution, ...others } = header;
  const columns = [{ id: "title", title: "model" }];
  for (const [id, title, digits] of METRICS) {
    columns.push({ id, title, numeric: true, cell: (row) => cell(row, id, digits) });
  }
  columns.push({ id: "jaccard_difference", title: "Δ Jaccard", numeric: true,
    cell: (row) => row.run === reference ? "reference" : difference(row) });
  columns.push({ id: "jaccard_p_holm", title: "p (Holm)", numeric: true, cell: (row) =>
    row.jaccard_p_holm === null ? "–" : row.jaccard_p_holm < 0.001 ? "< 0.001"
      : number(row.jaccard_p_holm, 3) });
  columns.push({ id: "n_runs", title: "runs", numeric: true });
  columns.push({ id: "n_parameters", title: "numbers", numeric: true });
  return [
    section("Table", note(caution, "caution"),
      table(columns, rows, { caption: "metrics of the test part", rowClass: (row) =>
        row.run === reference ? "chosen" : "" }),
      note("Brackets: 95 % interval from bootstrap resamples of the test patients. Δ: difference " +
        "to the reference on the same resamples. p: Wilcoxon signed rank over patients, corrected " +
        "after Holm.")),
    section("Jaccard and DDI rate", scatter(found)),
    section("What the numbers rest on", facts(Object.entries(others))),
  ];
}

const interval = (low, high) => el("span", { class: "interval" }, `[${low}, ${high}]`);
const cell = (row, id, digits) => [number(row[id], digits), el("br"),
  interval(number(row[`${id}_low`], digits), number(row[`${id}_high`], digits))];
const signed = (value) => (value > 0 ? "+" : "") + number(value, 3).replace("-", "−");
const difference = (row) => [signed(row.jaccard_difference), el("br"),
  interval(signed(row.jaccard_difference_low), signed(row.jaccard_difference_high))];

function scatter({ rows, truth, chance }) {
  const bars = (row, id) => ({
    type: "data", symmetric: false, thickness: 1, width: 3,
    array: [row[`${id}_high`] - row[id]], arrayminus: [row[id] - row[`${id}_low`]],
  });
  const data = rows.map((row, i) => ({
    x: [row.ddi_rate], y: [row.jaccard], type: "scatter", mode: "markers", name: row.title,
    marker: { size: 12, color: PALETTE[i % 7], symbol: SYMBOLS[i % 7] },
    error_y: bars(row, "jaccard"), error_x: bars(row, "ddi_rate"),
    hovertemplate: "Jaccard %{y:.3f}, DDI rate %{x:.3f}",
  }));
  const line = (x, dash, color) => ({
    type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash, color, width: 1.5 },
  });
  const label = (x, text, right) => ({
    x, y: 1.02, yref: "paper", yanchor: "bottom", text, showarrow: false,
    xanchor: right ? "left" : "right",
  });
  const layout = {
    height: 440, margin: { l: 60, r: 20, t: 34, b: 60 }, legend: { orientation: "h", y: -0.2 },
    xaxis: { title: { text: "DDI rate (lower is safer)" } },
    yaxis: { title: { text: "Jaccard (higher is better)" } },
    shapes: [line(truth, "dash", "#D55E00"), line(chance, "dot", "#7f8c99")],
    annotations: [label(truth, "ground truth", truth >= chance),
      label(chance, "chance", truth < chance)],
    showlegend: true,
  };
  return figure(data, layout, "Jaccard against DDI rate of the compared models");
}
