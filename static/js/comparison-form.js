// The form of a new comparison: only what belongs to what differs is shown, and errors stand beside their fields.
const form = document.getElementById("comparison-form");

function show() {
  const differs = form.elements.namedItem("differs").value;
  for (const part of form.querySelectorAll("[data-when]")) part.hidden = part.dataset.when !== differs;
  for (const part of form.querySelectorAll("[data-unless]")) part.hidden = part.dataset.unless === differs;
  for (const part of form.querySelectorAll("[data-search]")) part.hidden = !document.getElementById(`id_${part.dataset.search}`).checked;
  for (const part of form.querySelectorAll("[data-metric]")) part.hidden = !document.getElementById(`id_metric_${part.dataset.metric}`).checked;
}

/** What the server said of each field, beside the field; Start waits until nothing speaks against it. */
function placeWords() {
  const errors = new Map([...document.querySelectorAll("#outlook [data-error-for]")].map((line) => [line.dataset.errorFor, line.textContent]));
  for (const field of form.querySelectorAll("[data-field]")) {
    const error = errors.get(field.dataset.field) ?? "";
    const line = [...field.querySelectorAll("[data-error]")].find((each) => each.closest("[data-field]") === field);
    field.classList.toggle("invalid", Boolean(error));
    if (!line) continue;
    line.hidden = !error;
    line.querySelector("span").textContent = error;
    if (error) field.closest("details")?.setAttribute("open", "");
  }
  document.getElementById("start").disabled = errors.size > 0;
}

if (form) {
  form.addEventListener("change", show);
  document.addEventListener("htmx:after:swap", () => {
    show();
    placeWords();
  });
  show();
  placeWords();
}
