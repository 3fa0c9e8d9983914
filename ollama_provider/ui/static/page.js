// The only script of the page. Without it everything works, but in the system's theme, and a reload is by hand.
"use strict";

// Airflow keeps its theme in the browser: "light", "dark", or "system".
function showTheme() {
  const root = document.documentElement;
  root.classList.remove("light", "dark");
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") root.classList.add(theme);
}

showTheme();
addEventListener("storage", showTheme);
