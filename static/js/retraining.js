// Ticks all or none of a client's releases: <section data-ticks> with buttons data-tick="all" and "none".
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-tick]");
  if (!button) return;
  const boxes = [...button.closest("[data-ticks]").querySelectorAll("input[type=checkbox]:not(:disabled)")];
  for (const box of boxes) box.checked = button.dataset.tick === "all";
  boxes[0]?.dispatchEvent(new Event("change", { bubbles: true }));
});
