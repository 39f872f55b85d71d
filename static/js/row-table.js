// The Rows tab: j and k go from row to row, e edits, x drops, m marks, / searches; the row that is looked at stands in a sheet beside the table.
import { toast } from "./toasts.js";

const table = () => document.querySelector("[data-row-table]");
const rows = () => [...document.querySelectorAll("tr[data-row]")];
const sheet = () => document.getElementById("row");
let current = location.hash.startsWith("#row-") ? location.hash.slice(5) : "";
let opened = false;

const here = () => document.querySelector(`tr[data-row="${CSS.escape(current)}"]`);
const linkOf = (row) => row?.querySelector("[data-row-open]");
const isWriting = (target) => target.closest?.("input:not([type='checkbox']), textarea, select, [contenteditable]");

/** Puts the focus on a row; while a row is open beside the table, that one is shown. */
function go(row) {
  if (!row) return;
  current = row.dataset.row;
  for (const each of rows()) each.toggleAttribute("data-here", each === row);
  linkOf(row).focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
  if (opened) linkOf(row).click();
}

function move(step) {
  const all = rows();
  const at = all.indexOf(here());
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step];
  if (next) return go(next);
  const page = table().querySelector(step > 0 ? '.pages a[rel="next"]' : '.pages a[rel="prev"]');
  page?.focus();
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  c: () => here()?.querySelector("[data-row-check]")?.click(),
  "/": () => document.querySelector("[data-row-search]").select(),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && opened && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    return close();
  }
  if (localStorage.getItem("keys") === "off" || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isWriting(event.target) || document.querySelector("dialog[open]") || !table()) return;
  const act = KEYS[event.key];
  const button = ["e", "x", "m"].includes(event.key) && here()?.querySelector(`[data-row-do="${event.key}"]`);
  if (!act && !button) return;
  event.preventDefault();
  if (act) act();
  else button.click();
});

document.addEventListener("click", (event) => {
  const row = event.target.closest?.("tr[data-row]");
  if (row) current = row.dataset.row;
  if (event.target.closest?.("[data-row-open]")) opened = true;
  if (event.target.closest?.("[data-sheet-close]") && table()) {
    event.preventDefault();
    close();
  }
  if (event.target.matches?.("[data-row-all]")) for (const box of document.querySelectorAll("[data-row-check]")) box.checked = event.target.checked;
});

document.addEventListener("focusin", (event) => {
  const row = event.target.closest?.("tr[data-row]");
  if (!row) return;
  current = row.dataset.row;
  for (const each of rows()) each.toggleAttribute("data-here", each === row);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-row-check], [data-row-all]")) return count();
  if (event.target.matches("[data-row-filters] :is(select, input[type='checkbox'])")) event.target.form.requestSubmit();
});

function count() {
  const box = document.querySelector("[data-row-bulk]");
  if (!box) return;
  const chosen = document.querySelectorAll("[data-row-check]:checked").length;
  box.hidden = !chosen;
  box.querySelector("[data-row-count]").textContent = `${chosen} chosen`;
}

function close() {
  opened = false;
  sheet().hidden = true;
  linkOf(here())?.focus();
}

document.addEventListener("htmx:after:swap", (event) => {
  if (!table()) return;
  const shown = sheet();
  const target = event.detail?.ctx?.target;
  if (target?.id === "row" || event.target.id === "row") {
    shown.hidden = !opened; // it may have been closed while it was on its way
    // Answers may overtake each other when a key is held down.
    if (opened && shown.dataset.rowShown && here() && shown.dataset.rowShown !== current) linkOf(here()).click();
    return;
  }
  const { said, level } = table().dataset;
  if (said) toast(said, level);
  count();
  const row = here();
  if (row) go(row);
  else if (opened) close();
});

function begin() {
  const list = document.querySelector("[data-keys-list]");
  for (const each of document.querySelectorAll("[data-row-keys] > *")) list?.append(each.cloneNode(true));
  document.querySelector("dialog[data-open-now]")?.showModal();
  if (here()) go(here());
}
begin();
