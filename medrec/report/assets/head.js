"use strict";
// before anything is shown: the theme, and a list of everything that goes wrong
(() => {
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("medrec-theme"); } catch { return null; } })();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = stored || (dark.matches ? "dark" : "light");

  const errors = [];
  const note = (text) => {
    errors.push(String(text));
    if (document.body) document.body.dataset.error = errors.join(" | ").slice(0, 2000);
  };
  window.medrec = { errors, note, stored: stored !== null, dark };
  window.addEventListener("error", (event) => {
    const text = event.message || "an element did not load";
    if (!text.startsWith("ResizeObserver loop")) note(text); // a delayed notice, no error
  }, true);
  window.addEventListener("unhandledrejection", (event) => note(event.reason));
  const written = console.error;
  console.error = (...parts) => { note(parts.join(" ")); written.apply(console, parts); };
})();
