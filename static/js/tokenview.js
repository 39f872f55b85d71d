// The token view: moves the cut as the max length is set, tells of each token under the pointer or the keyboard, and leafs by arrow keys.
import { make } from "./dom.js";
import { count } from "./format.js";

const view = document.querySelector("[data-token-view]");
const tip = document.getElementById("token-tip");
if (view) start();

function start() {
  const typed = view.querySelector("#id_length");
  const slider = view.querySelector("[data-token-slider]");
  slider?.addEventListener("input", () => {
    typed.value = slider.value;
    cutAt(Number(slider.value));
  });
  slider?.addEventListener("change", keep);
  slider?.addEventListener("change", () => { if (view.querySelector("#id_only")?.value) typed.form.requestSubmit(); }); // other rows are cut now
  typed.addEventListener("input", () => {
    const length = Number(typed.value);
    if (!Number.isInteger(length) || length < Number(typed.dataset.lowest) || length > Number(typed.dataset.highest)) return;
    if (slider) slider.value = length;
    cutAt(length);
    keep();
  });
  for (const field of view.querySelectorAll("[data-token-form] select, #id_row")) field.addEventListener("change", () => field.form.requestSubmit());
  for (const box of view.querySelectorAll("[data-tokens]")) watch(box);
  document.addEventListener("keydown", leaf);
}

function cutAt(length) {
  view.dataset.length = length;
  for (const reading of view.querySelectorAll("[data-reading]")) {
    const { begin, total, runs } = facts(reading);
    [...reading.querySelector("[data-tokens]").children].forEach((token, place) => token.classList.toggle("tok-cut", begin + place >= length));
    const learnt = within(runs, 0, length);
    reading.querySelector("[data-learnt]").textContent = count(learnt);
    reading.querySelector("[data-share]").textContent = Math.round((100 * learnt) / Math.max(1, Math.min(total, length)));
    reading.querySelector("[data-cut]").textContent = count(Math.max(0, total - length));
    reading.querySelector("[data-nothing]").hidden = within(runs, 1, length) > 0;
  }
}

const facts = (reading) => ({ begin: Number(reading.dataset.begin), total: Number(reading.dataset.total), runs: JSON.parse(reading.dataset.runs) });
const within = (runs, begin, end) => runs.reduce((sum, [since, upto]) => sum + Math.max(0, Math.min(end, upto) - Math.max(begin, since)), 0);

// The address and the ways to other rows take the new max length along.
function keep() {
  const withLength = (href) => {
    const url = new URL(href, location.href);
    url.searchParams.set("length", view.dataset.length);
    return url;
  };
  history.replaceState(null, "", withLength(location.href));
  for (const link of document.querySelectorAll("[data-token-view] a[href^='?']")) {
    const url = withLength(link.href);
    link.setAttribute("href", url.search + url.hash);
  }
}

function leaf(event) {
  const key = { ArrowLeft: "previous", ArrowRight: "following" }[event.key];
  if (!key || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest?.("input, textarea, select, [data-tokens], [role='tablist'], dialog")) return;
  view.querySelector(`[data-token-link="${key}"]`)?.click();
}

function watch(box) {
  let here = -1;
  const go = (place) => {
    box.children[here]?.classList.remove("tok-here");
    here = Math.max(0, Math.min(box.children.length - 1, place));
    const token = box.children[here];
    if (!token) return;
    token.classList.add("tok-here");
    token.scrollIntoView({ block: "nearest" });
    tell(token, here);
  };
  const leave = () => {
    box.children[here]?.classList.remove("tok-here");
    tip.hidePopover();
  };
  box.addEventListener("pointerover", (event) => {
    const token = event.target.closest("[data-id]");
    if (token) tell(token, [...box.children].indexOf(token));
  });
  box.addEventListener("pointerleave", () => { if (document.activeElement !== box) tip.hidePopover(); });
  box.addEventListener("focus", () => { if (box.matches(":focus-visible")) go(Math.max(here, 0)); });
  box.addEventListener("blur", leave);
  box.addEventListener("click", (event) => {
    const token = event.target.closest("[data-id]");
    if (token) go([...box.children].indexOf(token));
  });
  box.addEventListener("keydown", (event) => {
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: box.children.length - 1 }[event.key];
    if (event.key === "Escape") tip.hidePopover();
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(next);
  });
}

function tell(token, place) {
  const { begin, total } = facts(token.closest("[data-reading]"));
  const text = token.matches(".tok-more") ? "one more token of the letter before" : `“${token.textContent.replaceAll("\n", "\\n").replaceAll("\t", "\\t")}”`;
  const parts = [`id ${token.dataset.id}`, `token ${count(begin + place + 1)} of ${count(total)}`, state(token)];
  tip.replaceChildren(make("b", "mono", text), make("span", "", parts.join(" · ")));
  tip.showPopover();
  beside(token.getClientRects()[0] ?? token.getBoundingClientRect());
}

function state(token) {
  if (token.matches(".tok-cut")) return "cut off";
  if (!token.matches(".tok-trained")) return "only read";
  return token.dataset.weight ? `learnt, counts ${token.dataset.weight} times` : "learnt";
}

function beside({ left, top, bottom }) {
  const { width, height } = tip.getBoundingClientRect();
  const gap = 6;
  tip.style.left = `${Math.max(gap, Math.min(left, document.documentElement.clientWidth - width - gap))}px`;
  tip.style.top = `${top - height - gap < gap ? bottom + gap : top - height - gap}px`;
}
