// Search of molecules, and one molecule.
import {
  chip, el, facts, figure, fill, get, heading, loading, note, number, section, short, table,
} from "./core.js";

export const GRADES = ["not graded", "take into account", "precaution", "not recommended",
  "contraindicated"];
export const severity = (grade, name) => chip(name || GRADES[grade], `grade${grade}`);
const path = (key) => `/api/molecules/${encodeURIComponent(key)}`;

export const drawing = (key, title) => el("span", { class: "plate" }, el("img", {
  src: `${path(key)}/drawing.svg`, alt: `structure of ${title}`, loading: "lazy",
  width: 420, height: 300,
}));

export async function moleculesPage(place, query) {
  place.append(heading("Molecules", "Species of the cohorts and of the feature tables."));
  const text = el("input", {
    type: "search", id: "molecule", value: query.get("text") || "", autocomplete: "off",
    placeholder: "metformin, N02B, beta blocking, CC(=O)Nc1ccc(O)cc1",
  });
  const only = el("select", { "aria-label": "computed" }, [
    ["", "all species"], ["conformer", "with a conformer"], ["elf", "with ELF features"],
    ["map", "with a stored ELF map"],
  ].map(([value, title]) =>
    el("option", { value, selected: value === (query.get("only") || "") }, title)));
  const found = el("div");
  let turn = 0, timer = 0;
  const search = async () => {
    const mine = ++turn;
    const asked = new URLSearchParams({ text: text.value.trim(), only: only.value });
    history.replaceState(null, "", `#/molecules?${asked}`);
    const next = el("div");
    if (!found.hasChildNodes()) found.replaceChildren(next);
    await fill(next, "Reading the molecules", async () => cards(await get(`/api/molecules?${asked}`)));
    if (mine === turn) found.replaceChildren(next);
  };
  text.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 200); });
  only.addEventListener("input", search);
  place.append(section("", el("div", { class: "bar" },
    el("label", { for: "molecule" }, "Search"), text, only),
  note("Name of a substance or class, ATC code, or a SMILES (then all that contain it).")), found);
  await search();
  return "Molecules";
}

function cards({ n, of, rows, dropped }) {
  const parts = [el("p", { class: "count", role: "status" }, n > rows.length
    ? `${n} of ${of} species, the first ${rows.length} are shown` : `${n} of ${of} species`)];
  if (!n) parts.push(note("Nothing fits. A substance without a structure is in no cohort."));
  parts.push(el("ul", { class: "cards" }, rows.map((row) => el("li", {},
    el("a", { class: "card", href: `#/molecules/${encodeURIComponent(row.key)}` },
      drawing(row.key, row.title), el("b", {}, row.title),
      el("span", {}, row.classes.map((one) => `${one.atc} ${one.name}`).join("; ") ||
        "in no class"),
      el("span", { class: "chips" }, chip(`${row.n_atoms} atoms`, "plain"),
        row.has_map ? chip("ELF map", "good") : row.has_elf ? chip("ELF features", "good")
          : row.has_conformer ? chip("conformer", "plain") : chip("not computed", "warn")))))));
  if (dropped.length) {
    parts.push(section(`${dropped.length} structures could not be used`, table([
      { id: "cohort", title: "cohort" }, { id: "atc", title: "ATC" },
      { id: "smiles", title: "structure" }, { id: "reason", title: "reason" },
    ], dropped, { caption: "structures without a species" })));
  }
  return parts;
}

// ---------------------------------------------------------------- one molecule

export async function moleculePage(place, query, key) {
  const body = el("div");
  place.append(body);
  let title = "Molecule";
  await fill(body, "Reading the molecule", async () => {
    const molecule = await get(path(key));
    title = molecule.title;
    const solid = el("div"), elf = el("div"), features = el("div");
    const tables = molecule.tables.filter((one) => !one.error);
    const withFeatures = tables.filter((one) => one.elf);
    const parts = [
      heading(molecule.title, molecule.names.map((one) => `${one.name} (${one.atc})`).join(", ")),
      section("Species", el("div", { class: "pair" }, drawing(key, molecule.title),
        facts(molecule.facts))),
      section("Drug classes and interactions", ...classes(molecule)),
      section("Computed", computed(molecule.tables)),
      section("Conformer", solid),
      section("ELF map", elf),
      section("Features", features),
    ];
    fill(solid, "Reading the conformer", () => conformer(key, tables));
    if (withFeatures.length) elf.append(...viewer(key));
    else elf.append(note("No ELF map of this molecule was computed. " +
      "`medrec features add SMILES` does that."));
    if (withFeatures.length) fill(features, "Reading the features", () => numbers(key, withFeatures));
    else features.append(note("No feature table has features of this molecule."));
    return parts;
  });
  return title;
}

function classes({ classes: own, interactions }) {
  if (!own.length) return [note("No drug class of a cohort holds it.")];
  const parts = [table([
    { id: "atc", title: "ATC" }, { id: "name", title: "class" }, { id: "cohort", title: "cohort" },
  ], own, { caption: "classes that hold it" })];
  if (!interactions.length) return [...parts, note("No interaction of these classes is listed.")];
  const counts = [4, 3, 2, 1, 0].map((grade) =>
    [grade, interactions.filter((one) => one.severity === grade).length]).filter(([, n]) => n);
  parts.push(el("p", { class: "chips" }, counts.map(([grade, n]) =>
    chip(`${n} ${GRADES[grade]}`, `grade${grade}`))));
  parts.push(table([
    { id: "severity", title: "severity", cell: (row) => severity(row.severity, row.severity_name) },
    { id: "other", title: "ATC" }, { id: "name", title: "interacts with" },
    { id: "atc", title: "as" }, { id: "cohort", title: "cohort" },
  ], interactions, { caption: "interactions of its classes" }));
  parts.push(note("Interactions are between classes: any two member substances may be the cause."));
  return parts;
}

function computed(tables) {
  if (!tables.length) return note("No feature table holds this molecule.");
  return tables.map((one) => {
    if (one.error) return facts([["table", one.table], ["error", one.error]]);
    const failures = one.failures.map((failure) => el("p", { class: "error" },
      `${failure.stage} failed (${failure.kind}, ${failure.attempts} attempts): ${failure.message}`));
    return el("div", {}, facts([
      ["table", one.table], ["conformer", one.conformer],
      ["ELF features", one.elf ? `yes, ${one.source}` : `no: ${one.reason || "not recorded"}`],
      ["stored map", one.has_map], ["level", one.level || "–"],
    ]), failures.length ? failures : note("No failure is recorded."));
  });
}

const COLOURS = { H: "#d9dee3", C: "#5b6570", N: "#3b6fd4", O: "#d8433b", F: "#4caf50",
  P: "#e0812b", S: "#d9a521", Cl: "#4caf50", Br: "#9c4a2f", I: "#7b3fa0" };

async function conformer(key, tables) {
  if (!tables.length) return note("No feature table holds this molecule.");
  const { symbols, coords, bonds, table: name } = await get(`${path(key)}/conformer`);
  const axis = (a) => coords.map((row) => row[a]);
  const ends = (a) => bonds.flatMap(([i, j]) => [coords[i][a], coords[j][a], null]);
  const common = { type: "scatter3d", showlegend: false };
  const data = [
    { ...common, x: ends(0), y: ends(1), z: ends(2), mode: "lines", hoverinfo: "skip",
      line: { color: "#7a8591", width: 8 } },
    { ...common, x: axis(0), y: axis(1), z: axis(2), mode: "markers", text: symbols,
      hovertemplate: "%{text}<extra></extra>",
      marker: { size: symbols.map((s) => (s === "H" ? 7 : 13)), opacity: 1,
        color: symbols.map((s) => COLOURS[s] || "#a667c9"),
        line: { color: "#2b3036", width: 1 } } },
  ];
  const hidden = { visible: false, showbackground: false };
  const layout = { height: 420, margin: { l: 0, r: 0, t: 0, b: 0 }, scene: {
    xaxis: hidden, yaxis: hidden, zaxis: hidden, aspectmode: "data",
    camera: { eye: { x: 0.2, y: -0.9, z: 1.1 } } } };
  return [figure(data, layout, `conformer, ${symbols.length} atoms`),
    note(`Feature table ${name}. Drag to turn, wheel to zoom.`)];
}

// The viewer is a document of its own, without an origin; it tells its height.
function viewer(key) {
  const frame = el("iframe", { sandbox: "allow-scripts", title: "viewer of the ELF map" });
  const wait = loading("Loading the viewer");
  const place = () => {
    const theme = document.documentElement.dataset.theme;
    frame.src = `${path(key)}/viewer.html?theme=${theme}`;
  };
  const listen = (event) => {
    if (!frame.isConnected && frame.dataset.shown) {
      window.removeEventListener("message", listen);
      window.removeEventListener("themechange", place);
      return;
    }
    const height = event.data?.medrecHeight;
    if (event.source !== frame.contentWindow || typeof height !== "number") return;
    frame.style.height = `${Math.min(Math.max(height + 24, 200), 3000)}px`;
    frame.dataset.shown = "yes";
    wait.remove();
  };
  window.addEventListener("message", listen);
  window.addEventListener("themechange", place);
  place();
  return [wait, frame];
}

async function numbers(key, tables) {
  const made = await Promise.all(tables.map((one) =>
    get(`${path(key)}/features/${encodeURIComponent(one.table)}`)));
  return made.map(({ table: name, sets, n_species: n }) => el("div", {},
    note(`${name}: standing among ${n} species with features, in percent.`),
    sets.map((one) => el("details", {}, el("summary", {}, `${one.set} (${one.rows.length})`),
      table([
        { id: "name", title: "feature" },
        { id: "value", title: "value", numeric: true, cell: (row) => short(row.value) },
        { id: "percentile", title: "percentile", numeric: true, cell: (row) =>
          el("span", { class: "meter" }, meter(row.percentile / 100), number(row.percentile, 0)) },
      ], one.rows, { caption: `features of the set ${one.set}` })))));
}

export function meter(share, kind = "") {
  const bar = el("i", { class: `bar-in ${kind}` });
  bar.style.width = `${(100 * share).toFixed(1)}%`;
  return el("span", { class: "bar-out", "aria-hidden": "true" }, bar);
}
