// Routes by the part after #, and the theme.
import { el, problem, RequestError } from "./core.js";
import { comparePage } from "./compare.js";
import { moleculePage, moleculesPage } from "./molecules.js";
import { recommendPage } from "./recommend.js";
import { runPage, runsPage } from "./runs.js";

// the token stays out of the history and of what people copy
if (location.search) history.replaceState(null, "", location.pathname + location.hash);

const main = document.getElementById("main");
const ROUTES = [
  [/^\/runs$/, runsPage], [/^\/runs\/([^/]+)$/, runPage], [/^\/compare$/, comparePage],
  [/^\/molecules$/, moleculesPage], [/^\/molecules\/([^/]+)$/, moleculePage],
  [/^\/recommend$/, recommendPage],
];
let latest = 0;

async function show() {
  const turn = ++latest;
  const [path, query] = (location.hash.slice(1) || "/runs").split("?");
  const route = ROUTES.find(([pattern]) => pattern.test(path));
  for (const link of document.querySelectorAll(".rail nav a")) {
    const current = path.startsWith(link.getAttribute("href").slice(1));
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = el("div", { class: "sheet" });
  main.replaceChildren(place);
  delete document.body.dataset.page;
  try {
    if (!route) throw new RequestError("no such page", 404);
    const parts = path.match(route[0]).slice(1).map(decodeURIComponent);
    const title = await route[1](place, new URLSearchParams(query || ""), ...parts);
    document.title = `${title} · medrec`;
  } catch (error) {
    if (!(error instanceof RequestError || error instanceof URIError)) throw error;
    place.replaceChildren(problem(error));
  } finally {
    if (turn === latest) document.body.dataset.page = path;
  }
}

window.addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  show();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("medrec-theme", root.dataset.theme); } catch { /* private window */ }
  window.dispatchEvent(new Event("themechange"));
});
window.addEventListener("error", (event) => { document.body.dataset.error = event.message; });
window.addEventListener("unhandledrejection", (event) => {
  document.body.dataset.error = String(event.reason);
});
show();
