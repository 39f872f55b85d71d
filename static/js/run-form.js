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
  for (const name of ["project", "dataset_version", "base_model", "plugin", "name"]) kept.set(name, new FormData(form).get(name) ?? "");
  location.assign(`${form.getAttribute("action")}?${kept}`);
}

function placeErrors() {
  const errors = new Map([...document.querySelectorAll("#estimate [data-error-for]")].map((line) => [line.dataset.errorFor, line.textContent]));
  for (const field of form.querySelectorAll("[data-field]")) {
    const text = errors.get(field.dataset.field) ?? "";
    const place = field.querySelector("[data-error]");
    if (!place) continue;
    place.hidden = !text;
    place.querySelector("span").textContent = text;
    field.classList.toggle("invalid", Boolean(text));
    field.querySelector(".control")?.toggleAttribute("aria-invalid", Boolean(text));
    if (text) field.closest("details")?.setAttribute("open", "");
  }
  document.getElementById("start").disabled = errors.size > 0;
}

if (form) {
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-preset]");
    if (button) applyPreset(button);
  });
  form.addEventListener("change", (event) => event.target.name === "plugin" && changeMethod());
  document.addEventListener("htmx:after:swap", placeErrors);
}
