// Keys: Ctrl or Cmd K opens the palette, ? the list, and data-key="g r" or "n" presses its link or button.
const PAUSE = 1200; // ms between two letters of one key

export function keys() {
  const dialog = document.getElementById("keys");
  if (!dialog) return;
  const box = dialog.querySelector("[data-keys-on]");
  box.checked = localStorage.getItem("keys") !== "off";
  box.addEventListener("change", () => localStorage.setItem("keys", box.checked ? "on" : "off"));
  listKeys(dialog.querySelector("[data-keys-list]"));
  let typed = "";
  let timer;
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      return document.querySelector('[data-open="palette"]').click();
    }
    if (!box.checked || event.ctrlKey || event.metaKey || event.altKey || isWriting(event.target) || document.querySelector("dialog[open]")) return;
    if (event.key === "?") return dialog.showModal();
    if (event.key.length !== 1) return;
    clearTimeout(timer);
    timer = setTimeout(() => { typed = ""; }, PAUSE);
    typed = `${typed} ${event.key}`.trim().slice(-3);
    const target = find(typed) ?? find(event.key);
    if (!target) return;
    typed = "";
    event.preventDefault();
    target.click();
  });
}

const find = (key) => document.querySelector(`[data-key="${CSS.escape(key)}"]`);
const isWriting = (target) => target.closest?.("input, textarea, select, [contenteditable]") !== null;

function listKeys(list) {
  for (const link of document.querySelectorAll(".rail [data-key]")) {
    const term = document.createElement("dt");
    term.textContent = link.textContent.trim();
    const keys = document.createElement("dd");
    for (const letter of link.dataset.key.split(" ")) {
      const key = document.createElement("kbd");
      key.textContent = letter;
      keys.append(key);
    }
    list.append(term, keys);
  }
}
