"use strict";
// Before the first paint: the stored theme, or the system's.
(() => {
  let stored = null;
  try { stored = localStorage.getItem("medrec-theme"); } catch { /* private window */ }
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = stored || (dark ? "dark" : "light");
})();
