// What floats over the page: dialogs (data-open, data-close, confirming by name), menus beside their button, tooltips kept on screen.
export function dialogs() {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("button[data-open], a[data-open]");
    if (opener) openDialog(document.getElementById(opener.dataset.open), opener);
    if (event.target.closest("[data-close]")) event.target.closest("dialog")?.close();
    if (event.target instanceof HTMLDialogElement && !inside(event, event.target)) event.target.close();
  });
  document.addEventListener("input", (event) => {
    const word = event.target.dataset?.confirmWord;
    if (word === undefined) return;
    event.target.closest("form").querySelector("[data-confirm-button]").disabled = event.target.value.trim() !== word;
  });
}

function openDialog(dialog, opener) {
  if (!dialog || dialog.open) return;
  opener.closest("[popover]")?.hidePopover();
  dialog.showModal();
  dialog.dispatchEvent(new CustomEvent("studio:open"));
}

function inside(event, box) {
  const { left, right, top, bottom } = box.getBoundingClientRect();
  return event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
}

export function menus() {
  // "toggle" does not bubble, so it is caught on the way down
  document.addEventListener("toggle", (event) => {
    const menu = event.target;
    if (!(menu instanceof Element) || !menu.matches(".menu[popover]")) return;
    const button = document.querySelector(`[popovertarget="${CSS.escape(menu.id)}"]`);
    button?.setAttribute("aria-expanded", event.newState === "open");
    if (event.newState === "open" && button) placeMenu(menu, button.getBoundingClientRect());
  }, true);
  document.addEventListener("keydown", (event) => {
    const menu = event.target.closest?.(".menu[popover]");
    if (!menu || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    const items = [...menu.querySelectorAll("a, button")];
    const next = items.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    items[(next + items.length) % items.length].focus();
    event.preventDefault();
  });
}

function placeMenu(menu, button) {
  const gap = 4;
  const { width, height } = menu.getBoundingClientRect();
  const above = menu.dataset.menu === "above" || button.bottom + gap + height > innerHeight;
  const right = button.left + width + gap > innerWidth;
  menu.style.top = `${Math.max(gap, above ? button.top - height - gap : button.bottom + gap)}px`;
  menu.style.left = `${Math.max(gap, right ? button.right - width : button.left)}px`;
}

export function tooltips() {
  const settle = (event) => {
    const term = event.target.closest?.(".term");
    if (!term) return;
    const tip = term.querySelector(".tooltip");
    tip.style.translate = "";
    const over = tip.getBoundingClientRect().right - document.documentElement.clientWidth + 8;
    if (over > 0) tip.style.translate = `${-over}px 0`;
  };
  document.addEventListener("pointerover", settle);
  document.addEventListener("focusin", settle);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const term of document.querySelectorAll(".term:is(:hover, :focus-within)")) term.dataset.hushed = "";
  });
  for (const name of ["pointerout", "focusout"]) {
    document.addEventListener(name, (event) => event.target.closest?.(".term")?.removeAttribute("data-hushed"));
  }
}
