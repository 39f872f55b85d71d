// The command palette: every page and thing by name, filtered as one types. Its list is the JSON in #palette-data.
const MOST = 40;

export function palette() {
  const dialog = document.getElementById("palette");
  if (!dialog) return;
  const things = JSON.parse(document.getElementById("palette-data").textContent) || [];
  const input = dialog.querySelector("input");
  const list = dialog.querySelector('[role="listbox"]');
  const none = dialog.querySelector(".palette-none");
  let at = 0;

  const mark = (index) => {
    const options = [...list.children];
    at = options.length ? (index + options.length) % options.length : 0;
    options.forEach((option, i) => option.setAttribute("aria-selected", i === at));
    options[at]?.scrollIntoView({ block: "nearest" });
    if (options[at]) input.setAttribute("aria-activedescendant", options[at].id);
    else input.removeAttribute("aria-activedescendant");
  };
  const draw = () => {
    const found = search(things, input.value);
    list.replaceChildren(...found.map(option));
    none.hidden = found.length > 0;
    mark(0);
  };
  dialog.addEventListener("studio:open", () => {
    input.value = "";
    draw();
    input.focus();
  });
  input.addEventListener("input", draw);
  input.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) mark(at + move);
    else if (event.key === "Enter") list.children[at]?.click();
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
