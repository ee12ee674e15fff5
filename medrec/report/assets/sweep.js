"use strict";
(() => {
  // a box over an axis of a figure of parallel axes keeps the trials that pass through it
  const keep = (figure) => {
    const n = figure.layout.meta.brush;
    const boxes = (figure.layout.selections || []).map((box) => {
      const [left, right] = [box.x0, box.x1].map(Number).sort((a, b) => a - b);
      const [low, high] = [box.y0, box.y1].map(Number).sort((a, b) => a - b);
      const inside = [...Array(n).keys()].filter((axis) => axis >= left && axis <= right);
      const near = Math.min(n - 1, Math.max(0, Math.round((left + right) / 2)));
      return { axes: inside.length ? inside : [near], low, high };
    });
    const lines = figure.data.map((trace, i) => i).filter((i) => figure.data[i].mode !== "markers");
    const stays = (y) => boxes.every(({ axes, low, high }) =>
      axes.every((axis) => y[axis] >= low && y[axis] <= high));
    const strength = lines.map((i) => (stays(figure.data[i].y) ? 0.85 : 0.07));
    Plotly.restyle(figure, { opacity: strength }, lines);
    figure.dataset.kept = strength.filter((value) => value > 0.5).length;
  };
  const attach = (figure) => {
    if (typeof figure.on !== "function" || !figure.layout) return false;
    if (figure.layout.meta && figure.layout.meta.brush) {
      for (const name of ["plotly_selected", "plotly_deselect"]) {
        figure.on(name, () => keep(figure));
      }
    }
    return true;
  };
  for (const figure of document.querySelectorAll(".figure")) {
    // figures are drawn later, some only when they come into view
    const watch = new MutationObserver(() => { if (attach(figure)) watch.disconnect(); });
    watch.observe(figure, { attributes: true, childList: true });
    if (attach(figure)) watch.disconnect();
  }
})();
