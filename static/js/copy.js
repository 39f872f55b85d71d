// Copy buttons: data-copy="text", or the text of the code block around the button.
export function copyOnClick() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy || button.closest(".code").querySelector("code").textContent);
    button.dataset.done = "";
    const use = button.querySelector("use");
    const before = use.getAttribute("href");
    use.setAttribute("href", before.replace(/#.*/, "#check"));
    setTimeout(() => {
      delete button.dataset.done;
      use.setAttribute("href", before);
    }, 1500);
  });
}
