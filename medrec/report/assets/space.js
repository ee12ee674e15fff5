"use strict";
(() => {
  const source = document.getElementById("space-data");
  const box = document.querySelector(".space");
  if (!source || !box) return;
  const data = JSON.parse(source.textContent);
  const figure = document.getElementById(data.figure);
  const part = (name) => box.querySelector(`.space-${name}`);
  const [map, card, rings, chooser, finder, found, note, legend] =
    ["map", "card", "rings", "view", "find", "found", "note", "legend"].map(part);
  const hint = card.firstElementChild;
  const MOST_RINGS = 60, MOST_LABELS = 8, MOST_DRAWN = 3, MOST_CLASSES = 6;

  let view = data.views[0], projection = "tsne", owner = [];
  let chosen = null, pinned = false, hits = [], ready = false;

  const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;
  const isClass = () => view.kind === "class";
  const item = (row) => (isClass() ? data.classes : data.molecules)[view.places[row]];
  const titleOf = (molecule) => molecule.name || data.classes[molecule.classes[0]].name ||
    molecule.formula;
  const title = (row) => (isClass() ? item(row).name || item(row).atc : titleOf(item(row)));
  const codes = (row) => (isClass() ? [item(row).atc] :
    item(row).atc.length ? item(row).atc : item(row).classes.map((i) => data.classes[i].atc));

  // ------------------------------------------------------------------ elements

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const formula = (text) => text.split(/((?<=[A-Za-z])\d+)/).map((bit, i) =>
    (i % 2 ? make("sub", bit) : document.createTextNode(bit)));
  const drawing = (molecule, caption) => {
    const plate = make("figure");
    if (molecule.svg) {
      const parsed = new DOMParser().parseFromString(molecule.svg, "image/svg+xml");
      const svg = document.importNode(parsed.documentElement, true);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `structure of ${titleOf(molecule)}`);
      plate.append(svg);
    } else {
      plate.append(make("figcaption", "no drawing on this page"));
    }
    if (caption) plate.append(make("figcaption", caption));
    return plate;
  };
  const classTable = (places) => {
    const table = make("table"), head = make("tr");
    head.append(make("th", "drug class"), make("th", "visits", "n"),
      make("th", "interacts with", "n"));
    table.append(head);
    for (const place of places.slice(0, MOST_CLASSES)) {
      const own = data.classes[place], row = make("tr"), name = make("td", own.atc);
      name.append(make("small", own.name));
      row.append(name, make("td", own.visits.toLocaleString("en"), "n"),
        make("td", `${own.degree} of ${data.classes.length - 1}`, "n"));
      table.append(row);
    }
    return table;
  };
  const nearest = (row) => {
    const list = make("ol");
    view.near[row].forEach((other, i) => {
      const entry = make("li"), button = make("button", title(other));
      button.type = "button";
      button.append(make("span", view.scores[row][i].toFixed(2)));
      button.addEventListener("click", () => { pinned = true; choose(other); map.focus(); });
      entry.append(button);
      list.append(entry);
    });
    return [make("h5", `nearest here (${view.measure})`), list];
  };
  const moleculeCard = (row) => {
    const own = item(row), more = own.classes.length - MOST_CLASSES;
    const sub = make("p", undefined, "sub");
    sub.append(...formula(own.formula));
    if (own.atc.length) sub.append(` · ${own.atc.join(", ")}`);
    const parts = [make("h4", titleOf(own)), sub, drawing(own), classTable(own.classes)];
    if (more > 0) parts.push(make("p", `and ${plural(more, "class", "classes")} more`, "sub"));
    parts.push(make("p", own.elf ? "with ELF features" : "without ELF features", "sub"));
    return parts;
  };
  const classCard = (row) => {
    const own = item(row), members = own.molecules.map((i) => data.molecules[i]);
    const elf = members.filter((molecule) => molecule.elf).length;
    const count = `${plural(members.length, "molecule")}, ${elf} with ELF features`;
    const parts = [make("h4", own.name || own.atc), make("p", `${own.atc} · ${count}`, "sub"),
      make("p", `${plural(own.visits, "visit")}, interacts with ${own.degree} of ` +
        `${plural(data.classes.length - 1, "other class", "other classes")}`)];
    const drawn = members.filter((molecule) => molecule.svg);
    for (const molecule of drawn.slice(0, MOST_DRAWN)) {
      parts.push(drawing(molecule, molecule.name || molecule.formula));
    }
    if (members.length > MOST_DRAWN) {
      const others = members.filter((molecule) => !drawn.slice(0, MOST_DRAWN).includes(molecule));
      const names = others.slice(0, 12).map((molecule) => molecule.name || molecule.formula);
      const rest = others.length > 12 ? ` and ${others.length - 12} more` : "";
      parts.push(make("p", `Also: ${names.join(", ")}${rest}`, "sub"));
    }
    return parts;
  };

  // ------------------------------------------------------------------ places

  const groups = [...legend.children];
  const hidden = (trace) => groups[trace].getAttribute("aria-pressed") === "false";
  const spot = (row) => {
    const layout = figure._fullLayout, own = owner[row];
    if (!layout || !layout.xaxis || !own || hidden(own.trace)) return null;
    const [xs, ys] = view.traces[own.trace][projection];
    const x = layout.xaxis.d2p(xs[own.point]), y = layout.yaxis.d2p(ys[own.point]);
    if (!(x >= 0 && x <= layout.xaxis._length && y >= 0 && y <= layout.yaxis._length)) return null;
    return [x + layout.xaxis._offset, y + layout.yaxis._offset];
  };
  const ring = (row, kind, label) => {
    const place = spot(row);
    if (!place) return;
    const element = make("div", undefined, `space-ring ${kind}`);
    element.style.left = `${place[0]}px`;
    element.style.top = `${place[1]}px`;
    if (place[1] < 46) element.classList.add("below");
    if (place[0] < 100) element.classList.add("left");
    if (place[0] > map.clientWidth - 100) element.classList.add("right");
    if (label) element.append(make("span", title(row)));
    rings.append(element);
  };
  const mark = () => {
    rings.replaceChildren();
    if (!ready) return;
    const shown = hits.length <= MOST_RINGS ? hits : [];
    for (const row of shown) if (row !== chosen) ring(row, "hit", hits.length <= MOST_LABELS);
    if (chosen !== null) ring(chosen, "chosen", true);
  };
  const choose = (row) => {
    chosen = row;
    if (row === null) {
      card.replaceChildren(hint);
    } else {
      card.replaceChildren(...(isClass() ? classCard(row) : moleculeCard(row)), ...nearest(row));
      card.scrollTop = 0;
    }
    mark();
  };

  // ------------------------------------------------------------------ search

  const fits = (row, text) => {
    const own = item(row), words = [title(row), ...codes(row), own.formula || ""];
    if (!isClass()) words.push(...own.classes.map((i) => data.classes[i].name));
    return words.some((word) => word.toLowerCase().includes(text)) ||
      (!isClass() && own.classes.some((i) => data.classes[i].atc.toLowerCase().startsWith(text)));
  };
  const search = () => {
    const text = finder.value.trim().toLowerCase();
    hits = text.length < 2 ? [] : view.places.map((_, row) => row).filter((row) => fits(row, text));
    found.textContent = text.length < 2 ? "" : `${hits.length} of ${view.places.length}`;
    if (ready) fade();
    mark();
  };
  const fade = () => {
    const inside = new Set(hits), all = view.traces.map((_, i) => i);
    const strength = (row) => (!hits.length ? 0.85 : inside.has(row) ? 1 : 0.15);
    Plotly.restyle(figure, { "marker.opacity": view.traces.map((t) => t.rows.map(strength)) }, all);
  };

  // ------------------------------------------------------------------ views

  const showGroups = () => {
    if (ready) {
      const all = groups.map((_, i) => i);
      Plotly.restyle(figure, { visible: all.map((i) => (hidden(i) ? "legendonly" : true)) }, all);
    }
    mark();
  };
  groups.forEach((button, number) => {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(hidden(number)));
      showGroups();
    });
    button.addEventListener("dblclick", () => {
      const alone = groups.every((other, i) => i === number || hidden(i));
      groups.forEach((other, i) => {
        other.setAttribute("aria-pressed", String(alone || i === number));
      });
      showGroups();
    });
  });

  const index = () => {
    owner = [];
    view.traces.forEach((trace, i) => {
      groups[i].lastElementChild.textContent = trace.rows.length;
      groups[i].disabled = trace.rows.length === 0;
    });
    view.traces.forEach((trace, number) => trace.rows.forEach((row, point) => {
      owner[row] = { trace: number, point };
    }));
  };
  const redraw = () => {
    index();
    chosen = null;
    pinned = false;
    note.textContent = view.note;
    if (!ready) return choose(null);
    const traces = view.traces, pick = (read) => traces.map(read);
    const [across, up] = view.axes[projection], ticks = projection === "pca";
    Plotly.update(figure, {
      x: pick((t) => t[projection][0]), y: pick((t) => t[projection][1]),
      customdata: pick((t) => t.rows), "marker.size": pick((t) => t.size),
      "marker.symbol": pick((t) => t.symbol), "marker.opacity": pick((t) => t.rows.map(() => 0.85)),
    }, {
      "xaxis.title.text": across, "yaxis.title.text": up, "xaxis.autorange": true,
      "yaxis.autorange": true, "xaxis.showticklabels": ticks, "yaxis.showticklabels": ticks,
      "xaxis.showgrid": ticks, "yaxis.showgrid": ticks,
      "margin.l": ticks ? 62 : 12, "margin.b": ticks ? 52 : 12,
    }, traces.map((_, i) => i));
    choose(null);
    search();
  };
  chooser.addEventListener("change", () => {
    const before = chosen === null ? null : { kind: view.kind, place: view.places[chosen] };
    const keep = pinned;
    view = data.views[Number(chooser.value)];
    redraw();
    // the same molecule in another map
    const row = before && before.kind === view.kind ? view.places.indexOf(before.place) : -1;
    if (row >= 0) { pinned = keep; choose(row); }
  });
  for (const button of box.querySelectorAll("[data-projection]")) {
    button.addEventListener("click", () => {
      const [row, keep] = [chosen, pinned];
      projection = button.dataset.projection;
      for (const other of box.querySelectorAll("[data-projection]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      redraw();
      pinned = keep;
      choose(row);
    });
  }
  finder.addEventListener("input", search);
  finder.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !hits.length) return;
    pinned = true;
    choose(hits[(hits.indexOf(chosen) + 1) % hits.length]);
  });

  // ------------------------------------------------------------------ keys

  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const step = ([dx, dy]) => {
    const start = chosen === null ? null : spot(chosen);
    let best = null, least = Infinity;
    for (let row = 0; row < view.places.length; row += 1) {
      const place = row === chosen ? null : spot(row);
      if (!place) continue;
      if (!start) return row;
      const [x, y] = [place[0] - start[0], place[1] - start[1]];
      const along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      const cost = along + 2 * aside;
      if (along > 0.5 && aside <= 2 * along && cost < least) [best, least] = [row, cost];
    }
    return best === null ? chosen : best;
  };
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      pinned = false;
      choose(null);
    } else if (ready && ways[event.key]) {
      event.preventDefault();
      pinned = true;
      choose(step(ways[event.key]));
    }
  });

  // ------------------------------------------------------------------ start

  const attach = () => {
    if (ready || typeof figure.on !== "function" || !figure._fullLayout) return ready;
    ready = true;
    const own = (event) => event.points[0].customdata;
    figure.on("plotly_hover", (event) => {
      if (!pinned && own(event) !== undefined) choose(own(event));
    });
    figure.on("plotly_click", (event) => {
      const same = pinned && chosen === own(event);
      pinned = !same;
      choose(own(event));
    });
    figure.on("plotly_afterplot", mark);
    if (view !== data.views[0]) redraw();
    mark();
    return true;
  };
  index();
  // figures are drawn later, some only when they come into view
  const watch = new MutationObserver(() => { if (attach()) watch.disconnect(); });
  watch.observe(figure, { attributes: true, childList: true, subtree: true });
  if (attach()) watch.disconnect();
  if (chooser.value !== "0") { view = data.views[Number(chooser.value)]; redraw(); }
  document.body.dataset.spaceCards = data.molecules.filter((own) => own.svg).length;
})();
