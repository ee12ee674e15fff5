// One patient, typed in: visits, codes, and what a model recommends. It stays in this page.
import { askCodes, codeField } from "./combobox.js";
import {
  chip, el, fill, get, heading, note, post, problem, RequestError, section, table,
} from "./core.js";
import { GRADES, meter, severity } from "./molecules.js";
import { runLink } from "./runs.js";

const KINDS = ["diagnoses", "procedures", "drugs"];
const LABELS = { diagnoses: "Diagnoses", procedures: "Procedures", drugs: "Drugs (ATC)" };
const SHOWN = 15;
const empty = () => ({ diagnoses: [], procedures: [], drugs: [] });

export async function recommendPage(place, query) {
  place.append(heading("Recommend",
    "Rank drugs for the last visit of a patient. What is typed here is not stored or logged."));
  const body = el("div");
  place.append(body);
  await fill(body, "Reading the runs", async () => {
    const runs = (await get("/api/runs")).runs
      .filter((run) => run.kind === "train" && run.status === "finished");
    if (!runs.length) return section("", note("There is no finished training run yet."));
    return bench(runs, query.get("run"));
  });
  return "Recommend";
}

const learned = (runs) =>
  (runs.find((run) => run.model && !/^(topk|copy_last)$/.test(run.model)) || runs[0]).name;

function bench(runs, asked) {
  const state = { visits: [empty()], run: runs.some((run) => run.name === asked) ? asked
    : learned(runs) };
  const visits = el("div", { class: "visits" }), status = el("div"), result = el("div");
  const choose = el("select", { id: "run" }, runs.map((run) =>
    el("option", { value: run.name, selected: run.name === state.run }, run.name)));
  const hard = el("select", { id: "hard" }, el("option", { value: "" }, "off"),
    [4, 3, 2, 1].map((grade) => el("option", { value: grade },
      grade === 4 ? GRADES[4] : `${GRADES[grade]} or worse`)));

  const changed = () => result.replaceChildren();
  const draw = () => visits.replaceChildren(...state.visits.map((visit, i) =>
    visitCard(state, visit, i, changed, () => { draw(); changed(); })));
  const load = () => attempt(status, "Loading the model", async () => {
    const found = await post("/api/predictor", { run: state.run });
    const sizes = found.codes;
    await describe(state);
    draw();
    return note(`${found.model} knows ${sizes.diagnoses} diagnoses, ${sizes.procedures} ` +
      `procedures and ${sizes.drugs} drug classes.`);
  });
  const take = async (document) => {
    if (!Array.isArray(document?.visits) || !document.visits.length) {
      status.replaceChildren(problem(new RequestError(
        'expected a file with {"visits": [{"diagnoses": [...], ...}, ...]}', 0)));
      return;
    }
    state.visits = document.visits.map((visit) => Object.fromEntries(KINDS.map((kind) =>
      [kind, (Array.isArray(visit?.[kind]) ? visit[kind] : [])
        .map((code) => ({ code: String(code), title: "", match: String(code) }))])));
    draw();
    changed();
    await load();
  };
  choose.addEventListener("input", () => {
    state.run = choose.value;
    history.replaceState(null, "", `#/recommend?${new URLSearchParams({ run: state.run })}`);
    draw();
    changed();
    load();
  });
  const submit = (event) => {
    event.preventDefault();
    attempt(result, "Loading the model and predicting", async () => {
      const answer = await post("/api/recommend", {
        run: state.run, document: plainDocument(state.visits),
        forbid: hard.value ? Number(hard.value) : null,
      });
      return answerParts(answer);
    });
  };
  draw();
  load();
  return el("form", { onsubmit: submit },
    section("Model", el("div", { class: "bar" }, el("label", { for: "run" }, "Training run"),
      choose, el("label", { for: "hard" }, "Forbid pairs that are"), hard), status),
    section("Patient", visits, buttons(state, draw, changed, take)), result);
}

function buttons(state, draw, changed, take) {
  const file = el("input", { type: "file", accept: "application/json,.json", class: "hidden",
    "aria-label": "patient file",
    onchange: async () => {
      let document = null;
      try { document = JSON.parse(await file.files[0].text()); } catch { /* said by take */ }
      file.value = "";
      await take(document);
    } });
  const button = (title, onclick) => el("button", { type: "button", onclick }, title);
  return el("div", { class: "bar" },
    el("button", { type: "submit", class: "main", id: "go" }, "Recommend"),
    button("Add a visit", () => { state.visits.push(empty()); draw(); changed(); }),
    el("button", { type: "button", id: "example", onclick: async () =>
      take(await get("/api/example")) }, "Load the example"),
    button("Open a file", () => file.click()), file,
    button("Export as JSON", () => save(plainDocument(state.visits))),
    button("Clear", () => { state.visits = [empty()]; draw(); changed(); }));
}

function visitCard(state, visit, i, changed, redraw) {
  const last = i === state.visits.length - 1;
  const remove = state.visits.length > 1 ? el("button", {
    type: "button", "aria-label": `remove visit ${i + 1}`,
    onclick: () => { state.visits.splice(i, 1); redraw(); },
  }, "Remove") : null;
  return el("fieldset", { class: "visit" },
    el("legend", {}, `Visit ${i + 1}${last ? ", to recommend for" : ""}`), remove,
    KINDS.filter((kind) => !(last && kind === "drugs")).map((kind) => codeField({
      label: LABELS[kind], codes: visit[kind], ask: askCodes(state.run, kind), changed,
    })), last ? note("Drugs of the last visit are what is asked for; none are read.") : null);
}

export const plainDocument = (visits) => ({
  visits: visits.map((visit, i) => Object.fromEntries(
    KINDS.filter((kind) => visit[kind].length && !(kind === "drugs" && i === visits.length - 1))
      .map((kind) => [kind, visit[kind].map((one) => one.code)]))),
});

// Titles of all codes, and which of them the model does not know.
async function describe(state) {
  const codes = Object.fromEntries(KINDS.map((kind) =>
    [kind, [...new Set(state.visits.flatMap((visit) => visit[kind].map((one) => one.code)))]]));
  if (!KINDS.some((kind) => codes[kind].length)) return;
  const found = await post("/api/codes/describe", { run: state.run, codes });
  for (const kind of KINDS) {
    const known = new Map(found[kind].map((one) => [one.code, one]));
    for (const visit of state.visits) {
      visit[kind] = visit[kind].map((one) => known.get(one.code) || one);
    }
  }
}

async function attempt(place, text, make) {
  const mine = el("div"); // an answer that comes late fills a place that is gone
  place.replaceChildren(mine);
  await fill(mine, text, make);
}

function save(document_) {
  const text = `${JSON.stringify(document_, null, 2)}\n`;
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: address, download: "patient.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// ---------------------------------------------------------------- the answer

function answerParts({ drugs, interactions, warnings, model, caution }) {
  const chosen = drugs.filter((drug) => drug.selected);
  const rows = el("div");
  const columns = [
    { id: "rank", title: "rank", numeric: true }, { id: "atc", title: "ATC" },
    { id: "name", title: "drug class" },
    { id: "probability", title: "probability", numeric: true, cell: (drug) =>
      el("span", { class: "meter" }, meter(drug.probability, drug.selected ? "on" : "off"),
        drug.probability.toFixed(3)) },
    { id: "selected", title: "recommended", value: (drug) => Number(drug.selected),
      cell: (drug) => drug.selected ? chip("✓ yes", "good") : "no" },
  ];
  let view = "chosen";
  const draw = () => {
    const shown = view === "all" ? drugs
      : view === "chosen" ? chosen : drugs.slice(0, Math.max(SHOWN, chosen.length + 5));
    rows.replaceChildren(table(columns, shown, { caption: "ranked drug classes",
      rowClass: (drug) => drug.selected ? "chosen" : "" }));
  };
  const choices = [["chosen", `recommended (${chosen.length})`], ["top", "and the next"],
    ["all", `all (${drugs.length})`]].map(([value, title]) => el("label", {},
    el("input", { type: "radio", name: "shown", value, checked: value === view,
      onchange: () => { view = value; draw(); } }), title));
  draw();
  return [
    section("Recommended for the last visit", note(caution, "caution"),
      warnings.length ? el("div", { class: "warnings" }, el("h3", {}, "Warnings"),
        el("ul", {}, warnings.map((text) => el("li", {}, text)))) : null,
      el("div", { class: "bar", role: "radiogroup", "aria-label": "shown drugs" }, choices), rows,
      el("p", { class: "note" }, "From ", runLink(model.run), `, model ${model.model}, cohort ` +
        `${model.cohort}.`)),
    section(`Interacting pairs among the recommended (${interactions.length})`,
      interactions.length ? table([
        { id: "severity", title: "severity",
          cell: (pair) => severity(pair.severity, pair.severity_name) },
        { id: "atc_a", title: "ATC" }, { id: "name_a", title: "drug class" },
        { id: "atc_b", title: "ATC" }, { id: "name_b", title: "drug class" },
      ], interactions, { caption: "interacting pairs, worst first" })
        : note("No interacting pair is listed among the recommended drugs."),
      note("Interactions are between classes: any two member substances may be the cause.")),
  ];
}
