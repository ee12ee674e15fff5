// The list of runs, and one run.
import {
  chip, duration, el, facts, figure, fill, get, heading, note, number, section, short, table, when,
} from "./core.js";

export const METRICS = [
  ["jaccard", "Jaccard", 3], ["f1", "F1", 3], ["prauc", "PRAUC", 3],
  ["ddi_rate", "DDI rate", 3], ["mean_n_drugs", "drugs", 1],
];
const PALETTE = ["#0072B2", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#56B4E9"];
const STATES = {
  finished: "good", running: "busy", created: "busy", failed: "bad", interrupted: "warn",
  unreadable: "bad",
};

export const runLink = (name) => el("a", { class: "name", href: `#/runs/${encodeURIComponent(name)}` }, name);
export const state = (run) => chip(run.status || "unknown", STATES[run.status] || "warn");

const named = (run) => {
  const text = run.error ? run.error.message : run.note;
  return el("div", {}, runLink(run.name), text ? el("div", { class: "under" }, text) : null);
};

const COLUMNS = [
  { id: "name", title: "run", cell: named },
  { id: "kind", title: "kind" },
  { id: "status", title: "status", cell: state },
  ...METRICS.map(([id, title, digits]) => ({
    id, title, numeric: true, value: (run) => run.metrics[id],
    cell: (run) => number(run.metrics[id], digits),
  })),
  { id: "cohort", title: "cohort" },
  { id: "started", title: "started", cell: (run) => when(run.started).split(" ").map((part) => el("div", { class: "when" }, part)) },
];

export async function runsPage(place) {
  const list = el("div");
  place.append(heading("Runs", "All training, pre-training, search and property runs."), list);
  await fill(list, "Reading the runs", async () => {
    const { runs } = await get("/api/runs");
    if (!runs.length) {
      return section("", note("There is no run yet. `medrec train` or `make demo` makes some."));
    }
    const shown = el("div");
    const count = el("span", { class: "count", role: "status" });
    const text = el("input", {
      type: "search", id: "filter", placeholder: "name, model, cohort", autocomplete: "off",
    });
    const [kind, status] = ["kind", "status"].map((id) => el("select", { "aria-label": id },
      el("option", { value: "" }, `every ${id}`),
      [...new Set(runs.map((run) => run[id] || ""))].filter(Boolean).sort()
        .map((value) => el("option", { value }, value))));
    const draw = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kept = runs.filter((run) => {
        const where = [run.name, run.kind, run.model, run.cohort, run.status].join(" ")
          .toLowerCase();
        return words.every((word) => where.includes(word)) &&
          (!kind.value || run.kind === kind.value) &&
          (!status.value || run.status === status.value);
      });
      count.textContent = `${kept.length} of ${runs.length}`;
      shown.replaceChildren(kept.length ? table(COLUMNS, kept, { caption: "" })
        : note("No run fits the filter."));
    };
    for (const input of [text, kind, status]) input.addEventListener("input", draw);
    draw();
    return section("", el("div", { class: "bar" },
      el("label", { for: "filter" }, "Filter"), text, kind, status, count), shown,
    note("Jaccard, F1, PRAUC, DDI rate and drugs per visit are those of the test part."));
  });
  return "Runs";
}

// ---------------------------------------------------------------- one run

export async function runPage(place, query, name) {
  place.append(heading(name));
  const body = el("div");
  place.append(body);
  await fill(body, "Reading the run", async () => {
    const run = await get(`/api/runs/${encodeURIComponent(name)}`);
    const curves = el("div"), metrics = el("div");
    const parts = [
      section("Summary", summary(run), reports(run)),
      run.has_curves ? section("Curves", curves) : null,
      run.has_rows ? section("Test part", metrics) : null,
      run.trials ? section("Trials", trials(run.trials)) : null,
      section("Configuration", el("pre", { tabindex: "0" }, run.config)),
      section("Provenance", provenance(run)),
    ];
    if (run.has_curves) fill(curves, "Reading the curves", () => curvesPart(name));
    if (run.has_rows && run.status === "finished") {
      fill(metrics, "Computing intervals", () => metricsPart(name));
    } else if (run.has_rows) metrics.append(note("The run is not finished."));
    return parts;
  });
  return name;
}

function summary(run) {
  const pairs = [
    ["status", state(run)], ["kind", run.kind], ["cohort", run.cohort || "none"],
    ["started", when(run.started)],
    [run.finished ? "finished" : "last sign of life", when(run.finished || run.heartbeat)],
  ];
  if (run.error) pairs.push(["error", `${run.error.kind}: ${run.error.message}`]);
  for (const [name, value] of Object.entries(run.report)) {
    if (name === "cohort" || name === "split_digest" || value === null) continue;
    pairs.push([name.replaceAll("_", " "), name === "seconds" ? duration(value) : name === "seed" ? String(value) : value]);
  }
  return [facts(pairs), run.restricted ? note(
    "The records are restricted. This page shows sums and means, and no patient.", "caution") : null];
}

function reports(run) {
  const links = run.reports.map((file) => el("a", {
    href: `/reports/${encodeURIComponent(file)}`, target: "_blank", rel: "noopener",
  }, file));
  if (!links.length) return note("No report was written for this run: `medrec report` does.");
  return el("p", {}, "Report: ", links.flatMap((link, i) => (i ? [", ", link] : [link])));
}

async function curvesPart(name) {
  const { epoch, series } = await get(`/api/runs/${encodeURIComponent(name)}/curves`);
  if (epoch.length < 2) return note("Fewer than two epochs are recorded.");
  const columns = Math.min(3, series.length), rows = Math.ceil(series.length / columns);
  const layout = {
    height: 70 + 210 * rows, margin: { l: 52, r: 12, t: 34, b: 44 }, showlegend: false,
    grid: { rows, columns, pattern: "independent", ygap: 0.34, xgap: 0.16 }, annotations: [],
  };
  const data = series.map((one, i) => {
    const axis = i ? String(i + 1) : "";
    layout[`xaxis${axis}`] = { title: { text: i >= series.length - columns ? "epoch" : "" } };
    layout[`yaxis${axis}`] = {};
    layout.annotations.push({
      text: one.name.replace(/^val_/, "validation ").replaceAll("_", " "), showarrow: false,
      xref: `x${axis} domain`, yref: `y${axis} domain`, x: 0, y: 1.03, yanchor: "bottom",
      xanchor: "left",
    });
    return {
      x: epoch, y: one.values, type: "scatter", mode: "lines", name: one.name,
      xaxis: `x${axis}`, yaxis: `y${axis}`,
      line: { width: 2, color: PALETTE[one.name.includes("loss") ? 0 : 1] },
      hovertemplate: "epoch %{x}: %{y:.4g}<extra></extra>",
    };
  });
  return figure(data, layout, `curves of ${name} over ${epoch.length} epochs`);
}

async function metricsPart(name) {
  const rows = await get(`/api/runs/${encodeURIComponent(name)}/metrics`);
  return [table([
    { id: "metric", title: "metric", cell: (row) => row.metric.replaceAll("_", " ") },
    { id: "value", title: "value", numeric: true, cell: (row) => number(row.value, 4) },
    { id: "low", title: "95 % interval", numeric: true,
      cell: (row) => row.low === null ? "–" : `${number(row.low, 4)} to ${number(row.high, 4)}` },
  ], rows, { caption: "metrics of the test part" }),
  note("Intervals: percentile bootstrap over the test patients.")];
}

const trials = ({ columns, rows }) => table(columns.map((name, i) => ({
  id: name, title: name.replace(/^params\./, ""), value: (row) => row[i],
  cell: (row) => short(row[i]), numeric: typeof rows[0]?.[i] === "number",
})), rows, { caption: "trials of the search, scored on the validation part" });

function provenance(run) {
  const made = run.provenance || {}, code = made.code || {}, machine = made.machine || {};
  const inputs = Object.entries(run.inputs).map(([kind, name]) => [`input: ${kind}`,
    kind === "pretrained" && name.includes("-") ? runLink(name) : name]);
  return facts([
    ["digest", run.digest], ...inputs,
    ["seeds", Object.entries(run.seeds || {}).map(([k, v]) => `${k} ${v}`).join(", ") || "–"],
    ["code", `${code.version || "unknown"}, commit ${code.commit || "unknown"}` +
      (code.dirty ? ", with local changes" : "")],
    ["machine", [machine.processor, machine.cores && `${machine.cores} cores`,
      machine.memory_gib && `${machine.memory_gib} GiB`, machine.platform,
      machine.python && `Python ${machine.python}`].filter(Boolean).join(", ") || "–"],
    ["packages", Object.entries(made.packages || {}).map(([k, v]) => `${k} ${v}`).join(", ") || "–"],
  ]);
}
