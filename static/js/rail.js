// The rail: its drawer on small screens, its fold, and the theme switch.
const root = document.documentElement;

export function drawer() {
  const rail = document.getElementById("rail");
  const opener = document.querySelector("[data-drawer]");
  const scrim = document.querySelector("[data-drawer-scrim]");
  if (!rail || !opener) return;
  const show = (open) => {
    rail.toggleAttribute("data-open", open);
    scrim.hidden = !open;
    opener.setAttribute("aria-expanded", open);
    document.getElementById("content").parentElement.inert = open;
    (open ? rail.querySelector("a, button") : opener).focus();
  };
  opener.addEventListener("click", () => show(true));
  scrim.addEventListener("click", () => show(false));
  rail.querySelector("[data-drawer-close]").addEventListener("click", () => show(false));
  rail.addEventListener("click", (event) => {
    if (rail.hasAttribute("data-open") && event.target.closest("[data-open]:not(#rail)")) show(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && rail.hasAttribute("data-open")) show(false);
  });
}

export function fold() {
  document.querySelector("[data-fold-rail]")?.addEventListener("click", () => {
    const folded = root.dataset.rail !== "folded";
    if (folded) root.dataset.rail = "folded";
    else delete root.dataset.rail;
    localStorage.setItem("rail", folded ? "folded" : "open");
  });
}

export function theme() {
  const buttons = document.querySelectorAll("[data-theme-set]");
  const mark = () => {
    const now = root.dataset.theme ?? "system";
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.themeSet === now);
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const chosen = button.dataset.themeSet;
      if (chosen === "system") delete root.dataset.theme;
      else root.dataset.theme = chosen;
      localStorage.setItem("theme", chosen);
      mark();
      document.dispatchEvent(new CustomEvent("studio:theme"));
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("studio:theme")));
  mark();
}
