// Short words after an action: the server's messages, and toast("Saved", "success") from scripts or an HX-Trigger header.
const KEPT = 6000; // ms; an error stays until it is dismissed

export function toasts() {
  const box = document.getElementById("toasts");
  if (!box) return;
  for (const each of box.querySelectorAll("[data-toast]")) leaveLater(each);
  box.addEventListener("click", (event) => {
    if (event.target.closest("[data-dismiss]")) event.target.closest("[data-toast]").remove();
  });
  document.addEventListener("toast", (event) => toast(event.detail.text ?? event.detail.value, event.detail.level));
  document.addEventListener("htmx:response:error", (event) => {
    const status = event.detail?.ctx?.response?.status ?? 0;
    if (status !== 422) toast(status >= 500 ? "The server could not do that. Its log says why." : "That is not possible here.", "error");
  });
  document.addEventListener("htmx:error", (event) => {
    if (!event.detail?.ctx?.response) toast("The server does not answer. It is tried again when you act.", "error");
  });
}

export function toast(text, level = "info") {
  const box = document.getElementById("toasts");
  const made = document.getElementById("toast-template").content.firstElementChild.cloneNode(true);
  made.className = `toast ${level}`;
  made.querySelector("p").textContent = text;
  box.append(made);
  leaveLater(made);
}

function leaveLater(made) {
  if (made.classList.contains("error")) return;
  let timer = setTimeout(() => made.remove(), KEPT);
  made.addEventListener("pointerenter", () => clearTimeout(timer));
  made.addEventListener("pointerleave", () => { timer = setTimeout(() => made.remove(), KEPT); });
}
