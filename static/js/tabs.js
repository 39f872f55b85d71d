// Tabs: <div role="tablist" class="tabs"> of <button role="tab" aria-controls="panel">; arrows move, the address keeps the choice.
export function tabs() {
  document.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (!tab) return;
    show(tab);
    history.replaceState(history.state, "", `#${tab.getAttribute("aria-controls")}`);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.('[role="tab"]');
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!tab || move === undefined) return;
    const all = siblings(tab);
    const at = Number.isFinite(move) ? (all.indexOf(tab) + move + all.length) % all.length : move > 0 ? all.length - 1 : 0;
    all[at].focus();
    all[at].click();
    event.preventDefault();
  });
  window.addEventListener("hashchange", () => {
    const tab = location.hash && document.querySelector(`[role="tab"][aria-controls="${CSS.escape(location.hash.slice(1))}"]`);
    if (!tab) return;
    show(tab);
    tab.scrollIntoView({ block: "center" });
    tab.focus({ preventScroll: true });
  });
  for (const list of document.querySelectorAll('[role="tablist"]')) {
    const named = location.hash && list.querySelector(`[aria-controls="${CSS.escape(location.hash.slice(1))}"]`);
    show(named || list.querySelector('[aria-selected="true"]') || list.querySelector('[role="tab"]'));
  }
}

const siblings = (tab) => [...tab.closest('[role="tablist"]').querySelectorAll('[role="tab"]')];

function show(tab) {
  for (const each of siblings(tab)) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    const panel = document.getElementById(each.getAttribute("aria-controls"));
    if (!panel) continue;
    panel.hidden = !chosen;
    if (chosen) panel.dispatchEvent(new CustomEvent("studio:shown", { bubbles: true }));
  }
}
