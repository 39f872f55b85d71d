// The queue's page: a run is dragged to another place, and the list stays fresh while nobody is using it.
import { toast } from "./toasts.js";

const EVERY = 5000; // ms
let dragged = null;
let focused = "";

const list = () => document.querySelector("[data-queue]");
const rows = () => [...list().querySelectorAll("[data-queue-row]")];

function inUse() {
  return dragged || document.hidden || list().querySelector("[data-queue-when][open], :focus-visible");
}

setInterval(() => {
  if (!inUse()) list().dispatchEvent(new Event("refresh"));
}, EVERY);

document.addEventListener("dragstart", (event) => {
  dragged = event.target.closest?.("[data-queue-row][draggable]");
  if (!dragged) return;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", dragged.dataset.queueRow);
  dragged.classList.add("dragged");
});

// The row travels along, so that one sees where it would stand.
document.addEventListener("dragover", (event) => {
  const over = event.target.closest?.("[data-queue-row]");
  if (!dragged || !over) return;
  event.preventDefault();
  if (over === dragged) return;
  const { top, height } = over.getBoundingClientRect();
  over[event.clientY < top + height / 2 ? "before" : "after"](dragged);
});

// An answer that was under way when the drag began would take the row out of one's hand.
document.addEventListener("htmx:before:swap", (event) => {
  if (dragged) event.preventDefault();
});

document.addEventListener("drop", (event) => {
  if (!dragged) return;
  event.preventDefault();
  put(dragged);
  dragged = null;
});

// Ends also where it was let go outside, or given up with Escape.
document.addEventListener("dragend", () => {
  if (!dragged) return;
  dragged = null;
  list().dispatchEvent(new Event("refresh"));
});

/** Asks for the place in which a row stands now: before the one that follows it. */
function put(row) {
  const all = rows();
  const next = all[all.indexOf(row) + 1];
  const button = row.querySelector("[data-queue-move] button");
  button.disabled = false;
  button.value = next?.dataset.queueRow ?? "";
  button.form.requestSubmit(button);
}

document.addEventListener("click", (event) => {
  focused = event.target.closest?.("[data-queue-move] button")?.id ?? "";
  for (const when of document.querySelectorAll("[data-queue-when][open]")) if (!when.contains(event.target)) when.open = false;
});

document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && event.target.closest?.("[data-queue-when][open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});

document.addEventListener("htmx:after:swap", () => {
  const { said, level } = list().dataset;
  if (said) toast(said, level);
  const button = document.getElementById(focused);
  focused = "";
  // At an end of the list its button is off; the other one of the row is at hand then.
  (button?.disabled ? button.form.querySelector("button:not(:disabled)") : button)?.focus();
});
