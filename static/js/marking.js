// Answers beside each other in a table: in each row, the words that the first does not have are marked in the others.
// <button data-differences aria-pressed hidden>; rows [data-answers], answers [data-answer].
import { mark } from "./differences.js";

for (const button of document.querySelectorAll("[data-differences]")) {
  const rows = [...document.querySelectorAll("[data-answers]")].map((row) =>
    [...row.querySelectorAll("[data-answer]")].map((box) => ({ box, text: box.textContent })));
  const show = (on) => {
    button.setAttribute("aria-pressed", on);
    for (const answers of rows) mark(answers, on);
  };
  button.hidden = false;
  button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
  if (button.getAttribute("aria-pressed") === "true") show(true);
}
