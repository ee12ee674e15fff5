// Elements, requests, tables, figures. Text from data becomes text nodes only, never markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export class RequestError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new RequestError("the server does not answer: is `medrec view` still running?", 0);
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) {
    throw new RequestError(body?.error?.message || `the server answered ${answer.status}`,
      answer.status);
  }
  return body;
}

export const get = (path) => ask(path, {});
export const post = (path, body) => ask(path, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
});

// ---------------------------------------------------------------- states

export const note = (text, kind = "note") => el("p", { class: kind }, text);
export const problem = (error) => el("p", { class: "error", role: "alert" }, error.message);
export const loading = (text = "Loading") =>
  el("p", { class: "loading", role: "status" }, el("span", { class: "spinner" }), `${text} …`);

// Shows a loading state, then what `make` gives, or what went wrong.
export async function fill(place, text, make) {
  place.replaceChildren(loading(text));
  try {
    const made = await make();
    place.replaceChildren(...[made].flat().filter(Boolean));
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    place.replaceChildren(problem(error));
  }
}

// ---------------------------------------------------------------- text

export const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits);

export const short = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "object" ? JSON.stringify(value)
    : String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
};

export function when(text) {
  if (!text) return "–";
  const time = new Date(text);
  const two = (n) => String(n).padStart(2, "0");
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ` +
    `${two(time.getHours())}:${two(time.getMinutes())}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const facts = (pairs) => el("dl", { class: "facts" },
  pairs.map(([name, value]) => [el("dt", {}, name),
    el("dd", {}, value instanceof Node ? value : short(value))]).flat());

export const section = (title, ...parts) =>
  el("section", {}, title ? el("h2", {}, title) : null, ...parts);

export const heading = (title, subtitle) => el("header", {},
  el("h1", {}, title), subtitle ? el("p", {}, subtitle) : null);

export const chip = (text, kind) => el("span", { class: `chip ${kind}` }, text);

// ---------------------------------------------------------------- tables

const key = (column, row) => (column.value ? column.value(row) : row[column.id]);

function order(rows, column, up) {
  const empty = (value) => value === null || value === undefined || value === "";
  return [...rows].sort((a, b) => {
    const [x, y] = [key(column, a), key(column, b)];
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    const step = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en");
    return up ? step : -step;
  });
}

// columns: {id, title, value(row), cell(row), numeric}. Headings are buttons that sort.
export function table(columns, rows, { caption = "", sortable = true, rowClass } = {}) {
  const body = el("tbody");
  const draw = (shown) => body.replaceChildren(...shown.map((row) =>
    el("tr", { class: rowClass ? rowClass(row) : null }, columns.map((column) => {
      const made = column.cell ? column.cell(row) : short(key(column, row));
      return el("td", { class: column.numeric ? "n" : null }, made);
    }))));
  const heads = columns.map((column) => {
    const head = el("th", { scope: "col", class: column.numeric ? "n" : null });
    if (!sortable) { head.append(column.title); return head; }
    head.append(el("button", {
      type: "button",
      onclick: () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        draw(order(rows, column, up));
      },
    }, column.title));
    return head;
  });
  draw(rows);
  return el("div", { class: "scroll", tabindex: "0", role: "region",
    "aria-label": caption || "table" },
  el("table", {}, caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, heads)), body));
}

// ---------------------------------------------------------------- figures

const libraries = new Map();

export function library(path) {
  if (!libraries.has(path)) {
    libraries.set(path, new Promise((done, failed) => {
      document.head.append(el("script", {
        src: path, onload: done,
        onerror: () => failed(new RequestError(`${path} did not load`, 0)),
      }));
    }));
  }
  return libraries.get(path);
}

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const changes = { "font.color": colour("--ink") };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(name)) {
      for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) {
        changes[`${name}.${part}`] = colour("--line");
      }
    }
  }
  return changes;
}

const BASE = {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: {}, yaxis: {},
  font: { family: "system-ui, sans-serif", size: 13 },
};

export function figure(data, layout, label) {
  const place = el("div", { class: "figure", role: "img", "aria-label": label },
    loading("Drawing"));
  place.style.minHeight = `${layout.height || 300}px`;
  const attached = new Promise((done) => setTimeout(done));
  Promise.all([library("/libraries/plotly.min.js"), attached]).then(async () => {
    if (!place.isConnected) return;
    place.replaceChildren();
    await window.Plotly.newPlot(place, data, { ...BASE, ...layout },
      { responsive: true, displayModeBar: false });
    await window.Plotly.relayout(place, themed(place.layout));
    place.dataset.drawn = "yes";
  }).catch((error) => place.replaceChildren(problem(error)));
  return place;
}

window.addEventListener("themechange", () => {
  for (const place of document.querySelectorAll(".figure[data-drawn]")) {
    window.Plotly.relayout(place, themed(place.layout));
  }
});
