"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const stored = (() => { try { return localStorage.getItem("medrec-theme"); } catch { return null; } })();
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = stored || (dark ? "dark" : "light");

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const themed = (layout) => {
    const changes = { "font.color": colour("--ink") };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        changes[key + ".gridcolor"] = colour("--line");
        changes[key + ".zerolinecolor"] = colour("--line");
        changes[key + ".linecolor"] = colour("--line");
      }
      if (/^scene\d*$/.test(key)) {
        for (const axis of ["xaxis", "yaxis", "zaxis"]) {
          changes[`${key}.${axis}.gridcolor`] = colour("--line");
          changes[`${key}.${axis}.color`] = colour("--soft");
        }
      }
    }
    return changes;
  };
  const options = { responsive: true, displayModeBar: false };

  const drawn = (element) => {
    const marks = element.querySelectorAll(
      ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point, .heatmaplayer image");
    const canvas = element.querySelector(".gl-container canvas");
    return marks.length > 0 || (canvas !== null && canvas.width > 0);
  };
  const draw = async () => {
    for (const [name, figure] of Object.entries(figures)) {
      const element = document.getElementById(name);
      delete figure.layout.template;
      await Plotly.newPlot(element, figure.data, figure.layout, options);
      await Plotly.relayout(element, themed(element.layout));
    }
    const all = [...document.querySelectorAll(".figure")];
    document.body.dataset.figures = all.length;
    document.body.dataset.drawn = all.filter(drawn).length;
  };
  window.addEventListener("error", (event) => {
    document.body.dataset.error = event.message;
  });

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("medrec-theme", root.dataset.theme); } catch { /* private window */ }
    for (const element of document.querySelectorAll(".figure")) {
      Plotly.relayout(element, themed(element.layout));
    }
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("th")];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    }));
  }
  draw().catch((error) => { document.body.dataset.error = String(error); });
})();
