"use strict";
(() => {
  const source = document.getElementById("elf-maps");
  const box = document.getElementById("elf-viewer");
  if (!source || !box) return;
  const root = document.documentElement;
  const { maps, scales, colours, first } = JSON.parse(source.textContent);
  const part = (name) => box.querySelector(`[data-elf="${name}"]`);
  const FINE = 0.25; // Angstrom: wider grids are drawn on twice as many points
  const ESP_SURFACE = -3; // log10 of the density of the molecular surface, e/Bohr^3
  const KCAL = 627.5095; // kcal/mol in a Hartree
  const FIELDS = {
    elf: { name: "ELF", unit: "", value: 0.8, low: 0.05, high: 0.98, step: 0.005, opacity: 0.6,
      colour: "#2f7fc1", show: (v) => v.toFixed(3), ticks: [0, 0.25, 0.5, 0.75, 1] },
    rho: { name: "electron density ρ", unit: "e/Bohr³", value: -1.5, low: -3, high: 0.3, step: 0.01,
      opacity: 0.5, colour: "#d98a3d", show: (v) => (10 ** v).toPrecision(3),
      ticks: [-4, -3, -2, -1, 0, 1] },
    esp: { name: "electrostatic potential", unit: "kcal/mol per unit charge", value: ESP_SURFACE,
      low: -3, high: -3, step: 1, opacity: 0.92, show: () => "0.001", ticks: [] },
  };
  const state = { field: "elf", map: null, at: [0.5, 0.5, 0.5], volumes: {}, codes: null,
    values: { elf: 0.8, rho: -1.5, esp: ESP_SURFACE }, opacity: {} };
  for (const name of Object.keys(FIELDS)) state.opacity[name] = FIELDS[name].opacity;
  let viewer = null, pending = false;

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const rgb = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  const stops = Object.fromEntries(Object.entries(colours).map(([k, v]) => [k, v.map(rgb)]));
  const colourOf = (name, t) => {
    const list = stops[name === "esp" ? "diverging" : "sequential"];
    const x = Math.min(Math.max(t, 0), 1) * (list.length - 1);
    const i = Math.min(Math.floor(x), list.length - 2);
    return list[i].map((c, a) => Math.round(c + (x - i) * (list[i + 1][a] - c)));
  };
  const tell = (text) => { document.body.dataset.elfViewer = text; };
  const say = (text) => { part("message").textContent = text; part("message").hidden = !text; };

  // ---- choice of the drug
  const label = (map) => [map.name, map.classes.map(([atc]) => atc).join(", "), map.formula]
    .filter(Boolean).join(" · ");
  const haystack = maps.map((map) =>
    [label(map), map.smiles, map.also, ...map.classes.flat()].join(" ").toLowerCase());
  const list = () => {
    const words = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = maps.map((_, i) => i).filter((i) => words.every((w) => haystack[i].includes(w)));
    part("list").replaceChildren(...found.map((i) => {
      const option = new Option(label(maps[i]), String(i), false, maps[i] === state.map);
      option.title = maps[i].classes.map((item) => item.join(" ")).join("; ");
      return option;
    }));
    part("found").textContent = `${found.length} of ${maps.length}`;
    return found;
  };

  // ---- fields of the chosen drug
  const load = (map) => {
    const fields = {};
    const grid = { shape: map.shape, origin: map.origin, step: map.spacing };
    for (const name of ["elf", "rho"]) {
      const data = elfMesh.decode(elfMesh.bytes(map[name]), ...scales[name]);
      const volume = { data, ...grid };
      fields[name] = map.spacing > FINE ? elfMesh.refine(volume) : volume;
    }
    const codes = map.esp ? elfMesh.bytes(map.esp) : null;
    Object.assign(state, { map, codes, volumes: fields, at: [0.5, 0.5, 0.5] });
    state.grid = grid;
    if (state.field === "esp" && !map.esp) state.field = "elf";
    describe();
    controls();
    if (viewer) place();
    draw();
  };
  const describe = () => {
    const map = state.map;
    part("title").textContent = `${map.name || map.formula}, ${map.formula}`;
    part("facts").textContent = map.text;
    for (const button of box.querySelectorAll("input[name=elf-field]")) {
      button.disabled = button.value === "esp" && !map.esp;
    }
    part("why").textContent = map.esp ? "" : map.esp_reason;
  };

  // ---- molecule and surface
  const place = () => {
    const lines = state.map.atoms.map((atom) => atom.join(" "));
    viewer.removeAllModels();
    viewer.addModel(`${lines.length}\n\n${lines.join("\n")}\n`, "xyz");
    const map = { ...$3Dmol.elementColors.Jmol, H: 0xc3cad2, C: 0x5b6570 };
    const colorscheme = { prop: "elem", map };
    viewer.setStyle({}, { stick: { radius: 0.11, colorscheme },
      sphere: { scale: 0.21, colorscheme } });
    reset();
  };
  const reset = () => {
    if (!viewer) return;
    viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    viewer.zoomTo();
    viewer.rotate(-35, "x");
    viewer.rotate(20, "y");
    viewer.zoom(1.1);
    viewer.render();
  };
  const vertexColours = (mesh) => {
    const none = rgb(css("--line").length === 7 ? css("--line") : "#bbbbbb");
    return mesh.vertices.map((p) => {
      const code = elfMesh.sampleMarked(state.codes, state.grid, p.x, p.y, p.z);
      const c = code === null ? none : colourOf("esp", (code - 1) / 254);
      return { r: c[0] / 255, g: c[1] / 255, b: c[2] / 255 };
    });
  };
  const drawSurface = () => {
    const esp = state.field === "esp";
    const volume = state.volumes[esp ? "rho" : state.field];
    const mesh = elfMesh.surface(volume, state.values[state.field]);
    const n = mesh.faces.length / 3;
    viewer.removeAllShapes();
    const tints = esp ? vertexColours(mesh) : null;
    for (const piece of elfMesh.chunks(mesh, 60000)) {
      viewer.addCustom({
        vertexArr: piece.vertices, normalArr: piece.normals, faceArr: piece.faces,
        color: esp ? piece.from.map((i) => tints[i]) : FIELDS[state.field].colour,
        opacity: state.opacity[state.field],
      });
    }
    viewer.render();
    document.body.dataset.elfTriangles = n;
    say(n ? "" : "No surface at this value.");
    tell(n ? "drawn" : "failed: no triangle at this value");
  };

  // ---- slices
  const axis = (a) => {
    const { shape, origin, step } = state.volumes.elf;
    return { low: origin[a], high: origin[a] + step * (shape[a] - 1) };
  };
  const tone = (x, y, z) => {
    if (state.field === "esp") {
      const code = elfMesh.sampleMarked(state.codes, state.grid, x, y, z, 0.5);
      return code === null ? null : (code - 1) / 254;
    }
    const [low, high] = scales[state.field];
    return (elfMesh.sample(state.volumes[state.field], x, y, z) - low) / (high - low);
  };
  const plane = (a, position, ends, w, h) => {
    const [across, up] = [0, 1, 2].filter((b) => b !== a);
    const values = new Float32Array(w * h), p = [0, 0, 0];
    p[a] = position;
    for (let row = 0; row < h; row++) for (let column = 0; column < w; column++) {
      p[across] = ends[across].low + (ends[across].high - ends[across].low) * (column + 0.5) / w;
      p[up] = ends[up].high - (ends[up].high - ends[up].low) * (row + 0.5) / h;
      const t = tone(...p);
      values[row * w + column] = t === null ? NaN : t;
    }
    return values;
  };
  const paint = (context, values, w, h, left, top) => {
    const image = context.createImageData(w, h);
    const [low, high] = scales[state.field] || [0, 1];
    const level = state.field === "esp" ? NaN : (state.values[state.field] - low) / (high - low);
    for (let i = 0; i < values.length; i++) {
      if (Number.isNaN(values[i])) continue;
      const over = values[i] > level;
      const edge = (i % w + 1 < w && values[i + 1] > level !== over) ||
        (i + w < values.length && values[i + w] > level !== over);
      const c = edge && !Number.isNaN(level) ? [255, 255, 255] : colourOf(state.field, values[i]);
      image.data.set([...c, 255], 4 * i);
    }
    context.putImageData(image, left, top);
  };
  const drawSlice = (a, scale, dense) => {
    const canvas = part(`slice-${a}`), ends = [0, 1, 2].map(axis);
    const [across, up] = [0, 1, 2].filter((b) => b !== a);
    const position = ends[a].low + state.at[a] * (ends[a].high - ends[a].low);
    const w = Math.max(2, Math.round(scale * (ends[across].high - ends[across].low)));
    const h = Math.max(2, Math.round(scale * (ends[up].high - ends[up].low)));
    const left = 34 * dense, top = 6 * dense, below = 34 * dense;
    canvas.width = w + left + 10 * dense;
    canvas.height = h + top + below;
    canvas.style.width = `${canvas.width / dense}px`;
    canvas.style.height = `${canvas.height / dense}px`;
    canvas.parentElement.style.width = `max(130px, ${canvas.style.width})`;
    const context = canvas.getContext("2d");
    paint(context, plane(a, position, ends, w, h), w, h, left, top);
    const place = (x, y) => [left + (x - ends[across].low) * scale,
      top + (ends[up].high - y) * scale];
    context.font = `${11 * dense}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [symbol, ...xyz] of state.map.atoms) {
      const near = Math.abs(xyz[a] - position) < 0.5;
      const [x, y] = place(xyz[across], xyz[up]);
      context.beginPath();
      context.arc(x, y, (near ? 7 : 2) * dense, 0, 2 * Math.PI);
      context.fillStyle = near ? "rgba(255,255,255,.85)" : "rgba(255,255,255,.55)";
      context.fill();
      context.fillStyle = "#1b232c";
      if (near) context.fillText(symbol, x, y);
      else { context.strokeStyle = "#1b232c"; context.lineWidth = 0.6 * dense; context.stroke(); }
    }
    context.strokeStyle = context.fillStyle = css("--soft") || "#666666";
    context.lineWidth = dense;
    context.strokeRect(left, top, w, h);
    for (const [side, ends2] of [["x", ends[across]], ["y", ends[up]]]) {
      const gap = ends2.high - ends2.low > 9 ? 4 : 2;
      for (let t = Math.ceil(ends2.low / gap) * gap; t <= ends2.high; t += gap) {
        const [x, y] = place(side === "x" ? t : ends[across].low, side === "y" ? t : ends[up].low);
        if (side === "x") context.fillText(t, x, top + h + 8 * dense);
        else context.fillText(t, left - 9 * dense, y);
      }
    }
    context.fillText(`${"xyz"[across]}, Å`, left + w / 2, top + h + 24 * dense);
    context.save();
    context.translate(8 * dense, top + h / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(`${"xyz"[up]}, Å`, 0, 0);
    context.restore();
    const text = `${"xyz"[a]} = ${position.toFixed(2)} Å`;
    part(`where-${a}`).textContent = text;
    part(`at-${a}`).value = state.at[a];
    part(`at-${a}`).setAttribute("aria-valuetext", text);
    canvas.setAttribute("aria-label",
      `${FIELDS[state.field].name} in the plane ${text} of ${state.map.name || state.map.formula}`);
  };
  const drawSlices = () => {
    const dense = Math.min(window.devicePixelRatio || 1, 2);
    const room = part("slices").clientWidth;
    const size = [0, 1, 2].map((a) => axis(a).high - axis(a).low);
    const tallest = Math.max(size[1], size[2]);
    const scale = dense * Math.min(300 / tallest, room > 560
      ? (room - 180) / (2 * size[0] + size[1]) : (room - 60) / Math.max(size[0], size[1]));
    for (let a = 0; a < 3; a++) drawSlice(a, Math.max(scale, 4), dense);
    drawBar(dense);
    document.body.dataset.elfSlices = 3;
  };
  const drawBar = (dense) => {
    const canvas = part("bar"), context = canvas.getContext("2d"), spec = FIELDS[state.field];
    const most = state.map.esp_range;
    const [low, high] = state.field === "esp" ? [-most * KCAL, most * KCAL] : scales[state.field];
    const ticks = state.field === "esp" ? [low, low / 2, 0, high / 2, high] : spec.ticks;
    const w = 300 * dense, edge = 22 * dense;
    canvas.width = w + 2 * edge;
    canvas.height = 50 * dense;
    canvas.style.width = `${canvas.width / dense}px`;
    for (let i = 0; i < w; i++) {
      context.fillStyle = `rgb(${colourOf(state.field, i / w).join(",")})`;
      context.fillRect(edge + i, 18 * dense, 1, 12 * dense);
    }
    context.fillStyle = css("--ink") || "#222222";
    context.font = `${11 * dense}px system-ui, sans-serif`;
    context.textAlign = "center";
    for (const tick of ticks) {
      const shown = state.field === "rho" ? (10 ** tick).toString() : String(+tick.toPrecision(3));
      context.fillText(shown, edge + w * (tick - low) / (high - low), 43 * dense);
    }
    context.fillText(spec.unit ? `${spec.name}, ${spec.unit}` : spec.name, edge + w / 2, 10 * dense);
    canvas.setAttribute("aria-label", `colour bar of ${spec.name}`);
  };

  // ---- controls
  const controls = () => {
    const spec = FIELDS[state.field], slider = part("value");
    Object.assign(slider, { min: spec.low, max: spec.high, step: spec.step });
    slider.disabled = state.field === "esp";
    slider.value = state.values[state.field];
    part("opacity").value = state.opacity[state.field];
    part("value-name").textContent = state.field === "esp" ? "Surface of ρ =" :
      `Isosurface of ${state.field === "elf" ? "ELF" : "ρ"} =`;
    for (const button of box.querySelectorAll("input[name=elf-field]")) {
      button.checked = button.value === state.field;
    }
    for (const text of box.querySelectorAll("[data-elf-of]")) {
      text.hidden = text.dataset.elfOf !== state.field;
    }
    written();
  };
  const written = () => {
    const spec = FIELDS[state.field], unit = state.field === "elf" ? "" : " e/Bohr³";
    const text = spec.show(state.values[state.field]) + unit;
    part("value-text").textContent = text;
    part("value").setAttribute("aria-valuetext", text);
  };
  const draw = () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      try {
        drawSlices();
        if (viewer) drawSurface();
      } catch (error) { fail(String(error)); }
    });
  };
  const fail = (reason) => { say(reason); tell(`failed: ${reason}`); };

  const keys = (event) => {
    const turn = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"],
      ArrowDown: [10, "x"] }[event.key];
    if (!viewer) return;
    if (turn) viewer.rotate(...turn);
    else if (event.key === "+" || event.key === "=") viewer.zoom(1.15);
    else if (event.key === "-") viewer.zoom(1 / 1.15);
    else if (event.key === "0") reset();
    else return;
    event.preventDefault();
    viewer.render();
  };
  const listen = () => {
    part("search").addEventListener("input", list);
    part("search").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const found = list();
      if (found.length) { part("list").value = String(found[0]); choose(found[0]); }
    });
    part("list").addEventListener("change", () => choose(Number(part("list").value)));
    for (const button of box.querySelectorAll("input[name=elf-field]")) {
      button.addEventListener("change", () => { state.field = button.value; controls(); draw(); });
    }
    part("value").addEventListener("input", () => {
      state.values[state.field] = Number(part("value").value);
      written();
      draw();
    });
    part("opacity").addEventListener("input", () => {
      state.opacity[state.field] = Number(part("opacity").value);
      draw();
    });
    for (let a = 0; a < 3; a++) {
      part(`at-${a}`).addEventListener("input", () => {
        state.at[a] = Number(part(`at-${a}`).value);
        drawSlices();
      });
    }
    part("reset").addEventListener("click", reset);
    part("closer").addEventListener("click", () => { viewer?.zoom(1.2); viewer?.render(); });
    part("farther").addEventListener("click", () => { viewer?.zoom(1 / 1.2); viewer?.render(); });
    const stage = part("stage");
    stage.addEventListener("keydown", keys);
    stage.addEventListener("pointerdown", () => stage.focus({ preventScroll: true }));
    // the wheel scrolls the page until the molecule is clicked
    stage.addEventListener("wheel", (event) => {
      if (document.activeElement !== stage) event.stopPropagation();
    }, { capture: true });
    new MutationObserver(() => {
      if (viewer) viewer.setBackgroundColor(css("--card") || "#ffffff", 1);
      if (state.map) draw();
    }).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
    let room = 0;
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (!state.map || room === part("slices").clientWidth) return;
      room = part("slices").clientWidth;
      drawSlices();
    })).observe(part("slices"));
    window.addEventListener("beforeprint", () => {
      if (viewer && state.map) part("still").src = viewer.pngURI();
    });
  };
  const choose = (i) => {
    try { load(maps[i]); } catch (error) { fail(String(error)); }
  };

  const start = () => {
    const probe = document.createElement("canvas");
    if (probe.getContext("webgl2") || probe.getContext("webgl")) {
      viewer = $3Dmol.createViewer(part("stage"), { backgroundColor: css("--card") || "#ffffff" });
    } else {
      fail("WebGL is not available in this browser: there is no 3D view. The slices below work.");
    }
    choose(first);
  };
  listen();
  list();
  part("list").value = String(first);
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    start();
  }, { rootMargin: "200px" });
  watch.observe(box);
})();
