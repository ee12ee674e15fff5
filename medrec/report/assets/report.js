"use strict";
(() => {
  const root = document.documentElement;
  const { body } = document;
  const { medrec } = window;
  if (medrec.errors.length) medrec.note(medrec.errors.pop());

  // ------------------------------------------------------------------ theme of figures
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const template = () => {
    const [ink, soft, line, card] = ["--ink", "--soft", "--line", "--card"].map(colour);
    const axis = {
      gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line,
      tickfont: { color: soft }, title: { font: { color: soft } }, automargin: true,
    };
    const space = { gridcolor: line, zerolinecolor: line, color: soft, showbackground: false };
    const box = { bgcolor: card, bordercolor: line, font: { color: ink } };
    return { layout: {
      font: { color: ink }, xaxis: axis, yaxis: axis,
      scene: { xaxis: space, yaxis: space, zaxis: space },
      hoverlabel: box, updatemenudefaults: box, sliderdefaults: { ...box, activebgcolor: line },
      legend: { bgcolor: "rgba(0,0,0,0)" },
      modebar: { bgcolor: card, color: soft, activecolor: colour("--accent") },
    } };
  };
  const themed = () => ({ template: template(), paper_bgcolor: colour("--card") });
  const plots = () => [...document.querySelectorAll(".js-plotly-plot")];
  const each = (change) => plots().forEach((element) => Plotly.relayout(element, change(element)));
  const setTheme = (name) => {
    root.dataset.theme = name;
    each(themed);
    document.dispatchEvent(new CustomEvent("medrec:theme", { detail: name }));
  };
  document.getElementById("theme").addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    medrec.stored = true;
    try { localStorage.setItem("medrec-theme", root.dataset.theme); } catch { /* private window */ }
  });
  medrec.dark.addEventListener("change", () => {
    if (!medrec.stored) setTheme(medrec.dark.matches ? "dark" : "light");
  });

  // ------------------------------------------------------------------ figures
  const figures = JSON.parse(document.getElementById("figures").textContent);
  // Plotly's own mode bar would offer to send a figure's data to a server
  window.Plotly?.setPlotConfig({ showSendToCloud: false, plotlyServerURL: "" });
  const options = (element) => {
    const filename = (element.getAttribute("aria-label") || "figure").replace(/[^\w]+/g, "-");
    const vector = {
      name: "svg", title: "Download as SVG", icon: window.Plotly.Icons.disk,
      click: (plot) => Plotly.downloadImage(plot, { format: "svg", filename }),
    };
    return {
      responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToAdd: [vector],
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
      toImageButtonOptions: { format: "png", scale: 3, filename },
    };
  };
  const MARKS = ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point path, " +
    ".heatmaplayer image, .contourlayer path, .boxlayer path, .violinlayer path, .pielayer path, " +
    ".sankey .sankey-node, .parcoords canvas, .parcats path, .treemaplayer path, " +
    ".sunburstlayer path, .imagelayer image, .polarlayer path";
  const drawn = (element) => {
    const canvas = element.querySelector("canvas");
    return element.querySelector(MARKS) !== null || (canvas !== null && canvas.width > 0);
  };
  const recount = () => {
    const all = [...document.querySelectorAll(".figure")];
    const done = all.filter(drawn).length;
    body.dataset.figures = all.length;
    body.dataset.drawn = done;
    return done === all.length;
  };
  const plot = async (element, figure) => {
    const layout = { ...figure.layout, ...themed() };
    await Plotly.newPlot(element, figure.data, layout, { ...options(element), ...figure.config });
    recount();
  };
  const waiting = new Map(Object.entries(figures)
    .map(([name, figure]) => [document.getElementById(name), figure])
    .filter(([element]) => element !== null));
  const draw = (element) => {
    const figure = waiting.get(element);
    if (figure === undefined) return Promise.resolve();
    waiting.delete(element);
    return plot(element, figure).catch((error) => medrec.note(`${element.id}: ${error}`));
  };
  Object.assign(medrec, { plot, recount, template, colour });

  // what comes into view first, the others one by one while the browser has nothing to do
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
    }
  }, { rootMargin: "400px 0px" });
  [...waiting.keys()].forEach((element) => near.observe(element));
  const idle = window.requestIdleCallback
    ? (work) => window.requestIdleCallback(work, { timeout: 1000 }) : (work) => setTimeout(work, 50);
  const rest = () => {
    const [element] = waiting.keys();
    if (element === undefined) return;
    draw(element).then(() => idle(rest));
  };
  window.addEventListener("load", () => setTimeout(() => idle(rest), 300));
  // sections with scripts of their own draw when they like
  let looks = 0;
  const look = setInterval(() => { looks += 1; if (recount() || looks > 60) clearInterval(look); }, 250);
  document.addEventListener("toggle", (event) => {
    event.target.querySelectorAll(".js-plotly-plot").forEach((e) => Plotly.Plots.resize(e));
  }, true);

  // ------------------------------------------------------------------ print: light, paper's width
  const [PAPER, TALLEST] = [670, 880];
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, sizes: new Map() };
    root.dataset.theme = "light";
    [...waiting.keys()].forEach(draw);
    each((element) => {
      const { width, height } = element.layout;
      before.sizes.set(element, [width ?? null, height ?? null]);
      return {
        ...themed(), width: Math.min(PAPER, width || PAPER), height: Math.min(TALLEST, height || 450),
      };
    });
  });
  window.addEventListener("afterprint", () => {
    if (before === null) return;
    root.dataset.theme = before.theme;
    each((element) => {
      const [width, height] = before.sizes.get(element) ?? [null, null];
      return { ...themed(), width, height, autosize: width === null };
    });
    before = null;
  });

  // ------------------------------------------------------------------ navigation
  const links = new Map([...document.querySelectorAll("nav a")]
    .map((link) => [document.getElementById(link.hash.slice(1)), link]));
  const nav = document.querySelector("nav");
  const visible = new Set();
  const mark = () => {
    const atEnd = window.innerHeight + window.scrollY >= root.scrollHeight - 4 && window.scrollY > 0;
    const shown = [...links.keys()].filter((section) => visible.has(section));
    const current = atEnd ? shown[shown.length - 1] : shown[0];
    if (current === undefined) return;
    for (const [section, link] of links) {
      if (section !== current) { link.removeAttribute("aria-current"); continue; }
      if (link.hasAttribute("aria-current")) continue;
      link.setAttribute("aria-current", "true");
      const [x, y] = [link.offsetLeft - nav.clientWidth / 2, link.offsetTop - nav.clientHeight / 2];
      nav.scrollTo({ left: x, top: y });
    }
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target); else visible.delete(target);
    }
    mark();
  }, { rootMargin: "-90px 0px -35% 0px" });
  [...links.keys()].forEach((section) => seen.observe(section));
  window.addEventListener("scroll", mark, { passive: true });

  // ------------------------------------------------------------------ tables
  const words = new Intl.Collator("en", { numeric: true });
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell === undefined) return null;
    if (cell.dataset.key === undefined) return cell.textContent.trim();
    const number = Number(cell.dataset.key);
    return Number.isNaN(number) ? null : number;
  };
  const compare = (x, y, sign) => {
    const [a, b] = [x, y].map((v) => (v === null ? 2 : typeof v === "number" ? 0 : 1));
    if (a !== b) return a - b; // numbers, then words, then nothing, whichever way
    if (a === 0) return sign * (x - y);
    return a === 1 ? sign * words.compare(x, y) : 0;
  };
  const sortBy = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const head = heads[column];
    const first = head.classList.contains("n") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
    rows.sort(([x], [y]) => compare(x, y, sign));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  const csv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    const text = cell.textContent.replace(/\s+/g, " ").trim();
    // a spreadsheet would run what begins like a formula
    const plain = /^[=@\t]|^[+-](?![\d.]|$)/.test(text) ? `'${text}` : text;
    return /[",\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  }).join(",")).join("\n");
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text;
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  const button = (text, name) => {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: text, className: name });
    return made;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const sort = button("", "sort");
      sort.append(...head.childNodes);
      sort.addEventListener("click", () => sortBy(table, column));
      head.append(sort);
    });
  }
  const measure = (target) => {
    const over = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (over) Object.assign(target, { tabIndex: 0 }); else target.removeAttribute("tabindex");
    target.classList.toggle("over", over);
  };
  const wide = new ResizeObserver((entries) => {
    requestAnimationFrame(() => entries.forEach(({ target }) => measure(target)));
  });
  for (const scroll of document.querySelectorAll(".scroll")) {
    const table = scroll.querySelector("table");
    if (table === null) continue;
    scroll.setAttribute("role", "region");
    const title = table.caption || scroll.closest("section")?.querySelector("h2");
    scroll.setAttribute("aria-label", `table: ${title ? title.textContent : ""}`);
    wide.observe(scroll);
    const take = button("Copy as CSV", "copy");
    take.addEventListener("click", async () => {
      await copy(csv(table));
      take.textContent = "Copied";
      setTimeout(() => { take.textContent = "Copy as CSV"; }, 1500);
    });
    scroll.before(take);
  }
  Object.assign(medrec, { csv, sortBy });
  recount();
})();
