"use strict";
// Theme: light, dark or system.
const root = document.documentElement, themes = ["", "light", "dark"];
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = themes[(themes.indexOf(root.dataset.theme || "") + 1) % 3];
});

// A click on a heading sorts the table by that column; a second click reverses the order.
const value = (row, column) => {
  const cell = row.cells[column], data = cell.querySelector("data");
  return data ? Number(data.value) : cell.textContent.trim();
};
const before = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b, undefined, { numeric: true }) : typeof a === "number" ? -1 : 1);
for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => before(value(a, column), value(b, column)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });

// Play one sound at a time.
let playing = null;
document.addEventListener("click", event => {
  const button = event.target.closest("button.play");
  if (!button) return;
  const sound = button.nextElementSibling, starts = sound.paused;
  if (playing) playing.pause();
  if (starts) sound.play();
  playing = sound;
});

// The map: a mark shows its sample, a button highlights its class.
const map = document.querySelector("svg.map");
if (map) {
  const line = map.querySelector(".pair"), card = document.getElementById("sample");
  const show = mark => {
    const pair = map.querySelectorAll('[data-sample="' + mark.dataset.sample + '"]');
    line.setAttribute("d", [...pair].map((m, i) => (i ? "L" : "M") + m.dataset.x + " " + m.dataset.y).join(""));
    const words = mark.getAttribute("aria-label").split("\n");
    card.querySelector("output").replaceChildren(...words.map(text => {
      const part = document.createElement("span");
      part.textContent = text;
      return part;
    }));
    for (const sheet of card.querySelectorAll("img")) {
      const side = Number(sheet.dataset.side), columns = Number(sheet.dataset.columns), n = Number(mark.dataset.sample);
      sheet.style.objectPosition = -side * (n % columns) + "px " + -side * Math.floor(n / columns) + "px";
      sheet.parentElement.hidden = false;
    }
  };
  for (const event of ["pointerover", "click"])
    map.addEventListener(event, e => {
      const mark = e.target.closest("[data-sample]");
      if (mark) show(mark);
    });
  const buttons = document.querySelectorAll("button[data-group]");
  for (const button of buttons)
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", on && other === button);
      for (const group of map.querySelectorAll("g"))
        group.classList.toggle("dim", on && group.dataset.group !== button.dataset.group);
    });
}
