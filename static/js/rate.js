// Blind rating by keyboard: 1 or Left, 2 or Right, 0 or Down for equally good, u to undo. One press is one rating, however long it is held.
document.addEventListener("keydown", (event) => {
  if (localStorage.getItem("keys") === "off" || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable], dialog") || document.querySelector("dialog[open]")) return;
  if (event.key === "ArrowDown" && scrolls(event.target)) return;
  const button = document.querySelector(`[data-rate~="${CSS.escape(event.key)}"]`);
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
});

/** Whether there is more to read below, so that Down goes there. */
function scrolls(target) {
  const box = target.closest?.(".rating-text");
  const page = document.scrollingElement;
  return [box, page].some((each) => each && each.scrollTop + each.clientHeight < each.scrollHeight - 1);
}

// What is on its way is not pressed twice.
document.addEventListener("htmx:before:request", () => disable(true));
document.addEventListener("htmx:finally:request", () => disable(false));

function disable(busy) {
  for (const button of document.querySelectorAll("[data-rate]")) button.disabled = busy;
}

document.addEventListener("htmx:after:swap", () => {
  window.scrollTo(0, 0);
  document.querySelector("[data-rating-start]")?.focus({ preventScroll: true });
});
