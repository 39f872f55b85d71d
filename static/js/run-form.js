// The form of a new run: defaults follow the case, another method brings its own form, errors stand beside their fields.
const form = document.getElementById("run-form");

/** Fields that still hold what the studio put into them take what it puts there now: another dataset or preset has other defaults. */
function follow() {
  const estimate = document.getElementById("estimate");
  if (!estimate.dataset.filled) return;
  const hidden = form.elements.namedItem("filled");
  const [before, now] = [hidden.value, estimate.dataset.filled].map((text) => JSON.parse(text));
  const reasons = JSON.parse(estimate.dataset.reasons);
  for (const [name, text] of Object.entries(now)) {
    const control = form.elements.namedItem(`set_${name}`);
    if (control && control.value === before[name]) control.value = text;
    const reason = form.querySelector(`[data-field="${name}"] [data-reason]`);
    if (reason && reasons[name]) reason.textContent = reasons[name];
  }
  hidden.value = estimate.dataset.filled;
}

/** Opens the form of another way to train. Of a copied run everything goes along, of a new one what somebody has changed. */
function changeMethod() {
  const kept = new URLSearchParams({ was: form.dataset.method });
  if (form.dataset.like) kept.set("from", form.dataset.like);
  const before = JSON.parse(form.elements.namedItem("filled").value || "{}");
  for (const [name, value] of new FormData(form)) {
    const setting = name.startsWith("set_") ? name.slice(4) : null;
    if (["project", "dataset_version", "base_model", "plugin", "preset", "name", "prompts"].includes(name)) kept.set(name, value);
    if (setting && (form.dataset.like || value !== before[setting])) kept.set(name, value);
  }
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
  form.addEventListener("change", (event) => event.target.name === "plugin" && changeMethod());
  form.addEventListener("click", (event) => {
    const link = event.target.closest("[data-instead]");
    if (!link) return;
    event.preventDefault(); // the link alone would forget what was typed
    form.querySelector(`[name="plugin"][value="${link.dataset.instead}"]`).click();
  });
  document.addEventListener("htmx:after:swap", () => {
    follow();
    placeWords();
  });
  placeWords();
}
