"use strict";
// In the head, so that a chosen theme is there before the first paint.
try {
  const chosen = localStorage.getItem("mbdefense-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch { /* a page opened from disk may have no storage; the system's theme holds */ }
