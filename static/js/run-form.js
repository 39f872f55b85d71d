// The form of a new run: presets fill fields, another method brings its own form, errors stand beside their fields.
const form = document.getElementById("run-form");

function applyPreset(button) {
  for (const pair of button.dataset.preset.split(";").filter(Boolean)) {
    const [name, ...rest] = pair.split("=");
    const control = form.elements.namedItem(name);
    if (control) control.value = rest.join("=");
  }
  for (const other of form.querySelectorAll("[data-preset]")) other.setAttribute("aria-pressed", String(other === button));
  form.dispatchEvent(new Event("input", { bubbles: true }));
}

function changeMethod() {
  const kept = new URLSearchParams();
  for (const name of ["project", "dataset_version", "base_model", "plugin", "name", "prompts"]) kept.set(name, new FormData(form).get(name) ?? "");
  location.assign(`${form.getAttribute("action")}?${kept}`);
}

/** What the server said of each field, beside the field; Start waits until nothing speaks against it. */
function placeWords() {
  const estimate = document.getElementById("estimate");
  const errors = new Map([...estimate.querySelectorAll("[data-error-for]")].map((line) => [line.dataset.errorFor, line.textContent]));
  const warnings = new Map([...estimate.querySelectorAll("[data-warns] .words")].map((line) => [line.closest("[data-warns]").dataset.warns, line.textContent]));
  for (const field of form.querySelectorAll("[data-field]")) {
    const name = field.dataset.field;
    const error = errors.get(name) ?? "";
    place(field.querySelector("[data-error]"), error);
    place(field.querySelector("[data-warning]"), error ? "" : warnings.get(name) ?? "");
    field.classList.toggle("invalid", Boolean(error));
    field.classList.toggle("changed", Boolean(estimate.querySelector(`[data-changed="${name}"]`)));
    const control = field.querySelector(".control");
    if (error) control?.setAttribute("aria-invalid", "true");
    else control?.removeAttribute("aria-invalid");
    if (error) field.closest("details")?.setAttribute("open", "");
  }
  document.getElementById("start").disabled = errors.size > 0 || estimate.querySelector("[data-blocks]") !== null;
}

function place(line, text) {
  if (!line) return;
  line.hidden = !text;
  line.querySelector("span").textContent = text;
}

if (form) {
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-preset]");
    if (button) applyPreset(button);
  });
  form.addEventListener("change", (event) => event.target.name === "plugin" && changeMethod());
  document.addEventListener("htmx:after:swap", placeWords);
  placeWords();
}
