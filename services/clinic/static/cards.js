// A titled box, and a table of facts.

import { el } from "./dom.js";

export function table(rows, head = null) {
  const cells = (row, tag) => row.map((cell, i) => el(i ? tag : "th", i ? {} : { scope: "row" }, String(cell)));
  return el("table", {},
    head && el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, "td")))));
}

export function card(title, hint, ...content) {
  return el("section", { class: "card" }, el("h3", {}, title), hint && el("p", { class: "hint" }, hint), ...content);
}
