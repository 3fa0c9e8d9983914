// The only script of the page. Without it everything works, but the theme is that of the system, and reloading and links
// out of Airflow's frame are up to the reader.
"use strict";

const SECONDS = 5;

// Airflow keeps its theme in the browser: "light", "dark" or "system".
function showTheme() {
  const theme = localStorage.getItem("theme");
  document.documentElement.classList.toggle("light", theme === "light");
  document.documentElement.classList.toggle("dark", theme === "dark");
}

// Show a page that changes as it is now. What a reader has opened stays open.
async function refresh() {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  if (!document.hidden && getSelection().type !== "Range") {
    try {
      const answer = await fetch(location.href, { redirect: "error" });
      if (answer.ok) show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The API server may be restarting: the next time will do.
    }
  }
  setTimeout(refresh, SECONDS * 1000);
}

// What can be unfolded, by its section and its place there: a section may appear, or get more of them.
function folds(page) {
  const found = new Map();
  for (const section of page.querySelectorAll("section")) {
    const name = section.getAttribute("aria-labelledby");
    section.querySelectorAll("details").forEach((each, place) => found.set(`${name} ${place}`, each));
  }
  return found;
}

function show(fresh) {
  const before = folds(document);
  const links = () => [...document.querySelectorAll("a, summary")];
  const focused = links().indexOf(document.activeElement);
  folds(fresh).forEach((each, name) => {
    if (before.has(name)) each.open = before.get(name).open;
  });
  document.title = fresh.title;
  document.body.replaceChildren(...fresh.body.childNodes);
  links()[focused]?.focus({ preventScroll: true });
}

// The frame in which Airflow shows this page lets no link out of it, and before 3.3 no download. Airflow's own page, which
// is of the same origin, follows them.
function followOutside(event) {
  const link = event.target.closest?.("a[target=_top], a[download]");
  if (!link || window.parent === window) return;
  event.preventDefault();
  const outside = parent.document.createElement("a");
  outside.href = link.href;
  if (link.hasAttribute("download")) outside.download = "";
  outside.click();
}

showTheme();
addEventListener("storage", showTheme);
addEventListener("click", followOutside);
setTimeout(refresh, SECONDS * 1000);
