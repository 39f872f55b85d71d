// The command palette: every page and thing by name, filtered as one types. Pages are the JSON in #palette-data; things are asked for
// at data-search, a moment after the last letter.
const MOST = 40;
const PAUSE = 120;

export function palette() {
  const dialog = document.getElementById("palette");
  if (!dialog) return;
  const pages = JSON.parse(document.getElementById("palette-data").textContent) || [];
  const input = dialog.querySelector("input");
  const list = dialog.querySelector('[role="listbox"]');
  const none = dialog.querySelector(".palette-none");
  let at = 0;
  let things = [];
  let timer = 0;
  let asked = null;

  const mark = (index) => {
    const options = [...list.children];
    at = options.length ? (index + options.length) % options.length : 0;
    options.forEach((option, i) => option.setAttribute("aria-selected", i === at));
    options[at]?.scrollIntoView({ block: "nearest" });
    if (options[at]) input.setAttribute("aria-activedescendant", options[at].id);
    else input.removeAttribute("aria-activedescendant");
  };
  const draw = () => {
    const found = [...search(pages, input.value), ...things].slice(0, MOST);
    list.replaceChildren(...found.map(option));
    none.hidden = found.length > 0 || list.getAttribute("aria-busy") === "true";
    mark(0);
  };
  const ask = async () => {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    try {
      const url = `${dialog.dataset.search}?q=${encodeURIComponent(input.value)}`;
      const response = await fetch(url, { headers: { Accept: "application/json" }, signal });
      things = response.ok ? (await response.json()).things : [];
    } catch (error) {
      if (error.name === "AbortError") return;
      things = []; // the server is away; pages are still found
    }
    list.setAttribute("aria-busy", "false");
    draw();
  };
  /** What is marked; where nothing is yet, the page of results. */
  const go = () => {
    if (list.children[at]) list.children[at].click();
    else if (dialog.dataset.search) location.assign(`${dialog.dataset.search}?q=${encodeURIComponent(input.value)}`);
  };
  const typed = () => {
    clearTimeout(timer);
    list.setAttribute("aria-busy", "true");
    things = [];
    draw();
    timer = setTimeout(ask, PAUSE);
  };
  dialog.addEventListener("studio:open", () => {
    input.value = "";
    if (dialog.dataset.search) typed();
    else draw();
    input.focus();
  });
  input.addEventListener("input", dialog.dataset.search ? typed : draw);
  input.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) mark(at + move);
    else if (event.key === "Enter") go();
    else return;
    event.preventDefault();
  });
}

/** Things whose title or hint has every word typed; those whose title starts with the first come first. */
function search(things, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const has = ({ title, hint, kind }) => words.every((word) => `${title} ${hint} ${kind}`.toLowerCase().includes(word));
  const first = ({ title }) => (words.length && title.toLowerCase().startsWith(words[0]) ? 0 : 1);
  return things.filter(has).sort((a, b) => first(a) - first(b)).slice(0, MOST);
}

function option(thing, index) {
  const link = document.createElement("a");
  link.href = thing.url;
  link.id = `palette-${index}`;
  link.role = "option";
  link.tabIndex = -1;
  for (const [name, text] of [["title", thing.title], ["hint", thing.hint], ["kind", thing.kind]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    link.append(part);
  }
  return link;
}
