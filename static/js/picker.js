// Chooses a column: what is offered is asked for at data-offered as one types, a few of each kind, and chosen by keyboard or pointer.
import { make } from "./dom.js";

const PAUSE = 150; // ms after the last letter

/** `taken()` names the targets that stand there already; `choose(target)` takes one that does not. */
export function picker(dialog, { taken, choose }) {
  const input = dialog.querySelector("input");
  const list = dialog.querySelector('[role="listbox"]');
  const none = dialog.querySelector(".palette-none");
  let timer = 0;
  let asked = null;

  const options = () => [...list.querySelectorAll('[role="option"]')];
  const mark = (index) => {
    const all = options();
    const at = all.length ? (index + all.length) % all.length : -1;
    all.forEach((option, place) => option.setAttribute("aria-selected", place === at));
    all[at]?.scrollIntoView({ block: "nearest" });
    if (at < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", all[at].id);
  };
  const at = () => options().findIndex((option) => option.getAttribute("aria-selected") === "true");
  const take = (option) => {
    dialog.close();
    choose(option.dataset.target);
  };
  const draw = (groups) => {
    const there = taken();
    let number = 0;
    const found = groups.map(({ title, things, more }) => {
      const free = things.filter(({ target }) => !there.includes(target));
      const group = make("div", "pick-group");
      group.role = "group";
      group.setAttribute("aria-label", title);
      group.append(make("p", "pick-title", more ? `${title}, the newest` : title));
      for (const thing of free) group.append(option(thing, `pick-${(number += 1)}`));
      return free.length ? group : null;
    });
    list.replaceChildren(...found.filter(Boolean));
    none.hidden = number > 0;
    mark(0);
  };
  const ask = async () => {
    asked?.abort();
    asked = new AbortController();
    try {
      const url = new URL(dialog.dataset.offered, location.href);
      url.searchParams.set("q", input.value);
      const response = await fetch(url, { headers: { Accept: "application/json" }, signal: asked.signal });
      draw(response.ok ? (await response.json()).groups : []);
    } catch (error) {
      if (error.name !== "AbortError") draw([]);
    }
  };
  dialog.addEventListener("studio:open", () => {
    input.value = "";
    ask();
    input.focus();
  });
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  });
  input.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) mark(at() + move);
    else if (event.key === "Enter") {
      const marked = options()[at()];
      if (marked) take(marked);
    } else return;
    event.preventDefault();
  });
  list.addEventListener("click", (event) => {
    const chosen = event.target.closest('[role="option"]');
    if (chosen) take(chosen);
  });
}

function option({ target, title, note, method }, id) {
  const row = make("div", "pick-option");
  row.role = "option";
  row.id = id;
  row.dataset.target = target;
  const dot = make("span", `dot method-${method}`);
  dot.setAttribute("aria-hidden", "true");
  row.append(dot, make("span", "title", title), make("span", "hint", note));
  return row;
}
