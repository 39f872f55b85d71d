// The page of a comparison: its curves come as they are made, its reader's choices stay, and answers beside each other show how they differ.
// <section data-comparison data-url data-key data-live>, its arms in #comparison-arms.
import "./marking.js";
import { Overlay } from "./overlay.js";

const EVERY = 2500; // ms between two looks while runs train
const LATER = 5000; // after one that failed
const GONE = [401, 403, 404];

class ComparisonPage {
  constructor(root) {
    this.root = root;
    this.url = root.dataset.url;
    this.live = root.dataset.live === "true";
    this.key = `comparison:${root.dataset.key}`;
    this.view = this.kept();
    const arms = JSON.parse(document.getElementById("comparison-arms").textContent);
    const legend = root.querySelector("[data-overlay-legend]");
    this.overlay = new Overlay(root.querySelector("[data-overlay]"), legend, { arms, view: this.view, onToggle: (arm) => this.toggle(arm) });
  }

  start() {
    for (const button of this.root.querySelectorAll("[data-x], [data-y]")) button.addEventListener("click", () => this.choose(button.dataset));
    this.root.querySelector("[data-smooth]").addEventListener("click", () => this.choose({ smoothed: !this.view.smoothed }));
    this.show();
    this.overlay.draw();
    this.look();
    document.addEventListener("visibilitychange", () => !document.hidden && this.live && this.look());
    window.addEventListener("online", () => this.look());
  }

  /** What is new since the last answer. It says itself where it stands, so nothing is missed after a sleep or a broken line. */
  async look() {
    clearTimeout(this.next);
    if (this.looking) return;
    this.looking = true;
    try {
      const answer = await fetch(`${this.url}?since=${this.overlay.stands}`, { headers: { Accept: "application/json" } });
      if (GONE.includes(answer.status) || answer.redirected) return this.away("You can no longer see this comparison.");
      if (!answer.ok) throw new Error(answer.status);
      this.take(await answer.json());
    } catch (error) {
      if (!(error instanceof TypeError) && !/^\d+$/.test(error.message)) throw error;
      this.away("The connection is away. The page joins again by itself, and misses nothing.");
      this.next = setTimeout(() => this.look(), LATER);
    } finally {
      this.looking = false;
    }
  }

  take(told) {
    this.away("");
    if (told.runs.some(({ arm }) => !this.overlay.values.has(arm))) return location.reload(); // a search has made another arm
    this.overlay.take(told);
    this.live = told.live;
    if (told.more) this.next = setTimeout(() => this.look(), 0);
    else if (told.live && !document.hidden) this.next = setTimeout(() => this.look(), EVERY);
    this.show();
  }

  away(text) {
    const place = this.root.querySelector("[data-link]");
    place.textContent = text;
    place.hidden = !text;
  }

  choose({ x, y, smoothed }) {
    Object.assign(this.view, x && { x }, y && { y }, smoothed !== undefined && { smoothed });
    this.keep();
  }

  toggle(arm) {
    if (!this.view.hidden.delete(arm)) this.view.hidden.add(arm);
    this.keep();
  }

  keep() {
    localStorage.setItem(this.key, JSON.stringify({ ...this.view, hidden: [...this.view.hidden] }));
    this.show();
    this.overlay.draw();
  }

  kept() {
    const usual = { x: "step", y: "loss", smoothed: true, hidden: [] };
    let found = {};
    try {
      found = JSON.parse(localStorage.getItem(this.key)) ?? {};
    } catch {
      localStorage.removeItem(this.key); // not ours, or cut off
    }
    const view = { ...usual, ...found };
    if (!["step", "tokens", "time", "cost"].includes(view.x)) view.x = usual.x;
    if (!["loss", "validation"].includes(view.y)) view.y = usual.y;
    return { ...view, hidden: new Set(Array.isArray(view.hidden) ? view.hidden : []) };
  }

  show() {
    const cost = this.root.querySelector('[data-x="cost"]');
    if (cost) cost.hidden = !this.overlay.priced;
    if (this.view.x === "cost" && this.overlay.runs.size && !this.overlay.priced) this.view.x = "time";
    for (const name of ["x", "y"]) {
      for (const button of this.root.querySelectorAll(`[data-${name}]`)) button.setAttribute("aria-pressed", button.dataset[name] === this.view[name]);
    }
    const smooth = this.root.querySelector("[data-smooth]");
    smooth.setAttribute("aria-pressed", this.view.smoothed);
  }
}

for (const root of document.querySelectorAll("[data-comparison]")) new ComparisonPage(root).start();
