// The figures of a run step by step, as a table with the newest first: <div data-steps data-url data-thinned>.
// A run of very many steps was sent thinned out; its table then asks the server for the steps that it shows.
import { make } from "./dom.js";
import { bytes, count, figure, share } from "./format.js";
import { Series } from "./series.js";

const ROWS = 25;
const REST = 500; // ms between two drawings while events stream in
const COLUMNS = [
  ["loss", "Loss", figure], ["validation_loss", "Validation", figure], ["learning_rate", "Learning rate", figure], ["grad_norm", "Gradient norm", figure],
  ["tokens_per_second", "Tokens/s", count], ["memory", "Memory", bytes], ["padding", "Padding", share], ["accuracy", "Preferred", share],
  ["margin", "Margin", figure], ["utilisation", "Busy", (value) => share(value == null ? null : value / 100)], ["power", "Power, W", count],
  ["epoch", "Epoch", (value) => (value == null ? "–" : value.toFixed(2))],
];

export class Steps {
  constructor(box, series) {
    Object.assign(this, { box, series, newestFirst: true, from: null, asked: 0 });
    if (!box) return;
    this.thinned = box.dataset.thinned === "true";
    this.fetched = null;
    const by = (name) => box.querySelector(`[data-steps-${name}]`);
    [this.table, this.pages, this.words, this.later, this.earlier, this.go] = ["table", "pages", "words", "later", "earlier", "go"].map(by);
    this.later.addEventListener("click", () => this.move(1));
    this.earlier.addEventListener("click", () => this.move(-1));
    this.go.addEventListener("submit", (event) => {
      event.preventDefault();
      const step = Number(new FormData(event.target).get("step"));
      this.from = this.newestFirst ? step : Math.max(this.first, step);
      this.load();
    });
    box.addEventListener("click", (event) => {
      if (!event.target.closest("[data-steps-sort]")) return;
      this.newestFirst = !this.newestFirst;
      this.from = null;
      this.load().then(() => box.querySelector("[data-steps-sort]")?.focus());
    });
    (box.closest('[role="tabpanel"]') ?? box).addEventListener("studio:shown", () => this.load());
  }

  get first() {
    return this.series.steps[0] ?? 0;
  }

  append(events) {
    if (!this.box) return;
    this.fetched?.append(events);
    if (this.waiting || !events.some(({ type }) => type === "metric" || type === "checkpoint")) return;
    this.waiting = setTimeout(() => {
      this.waiting = 0;
      if (this.from === null) this.load();
    }, REST);
  }

  /** Steps of the page that is shown, the lowest and the highest. */
  range() {
    const { steps } = this.series;
    const top = this.from ?? (this.newestFirst ? this.series.last : this.first);
    if (this.thinned) return this.newestFirst ? [Math.max(this.first, top - ROWS + 1), top] : [top, Math.min(this.series.last, top + ROWS - 1)];
    const at = this.newestFirst ? steps.findLastIndex((step) => step <= top) : steps.findIndex((step) => step >= top);
    const low = this.newestFirst ? Math.max(0, at - ROWS + 1) : Math.max(0, at);
    return [steps[low], steps[Math.min(steps.length - 1, this.newestFirst ? at : at + ROWS - 1)]];
  }

  /** To later steps (way 1) or earlier ones (way -1). */
  move(way) {
    const [low, high] = this.range();
    const steps = this.series.steps;
    if (this.thinned) this.from = this.newestFirst ? high + way * ROWS : Math.max(this.first, low + way * ROWS);
    else {
      const at = steps.indexOf(this.newestFirst ? high : low) + way * ROWS;
      this.from = steps[Math.min(steps.length - 1, Math.max(0, at))];
    }
    if (this.newestFirst && this.from >= this.series.last) this.from = null;
    this.load();
  }

  get isHidden() {
    return !this.box || this.box.closest("[hidden]") !== null;
  }

  async load() {
    if (this.isHidden || !this.series.steps.length) return;
    const [low, high] = this.range();
    if (this.thinned && !this.holds(low, high)) await this.fetch(low, high);
    this.draw(low, high);
  }

  /** True where the steps that were fetched last are those; while a run goes on, its newest ones came by themselves. */
  holds(low, high) {
    return this.fetched && this.fetched.low <= low && Math.max(this.fetched.high, this.fetched.last) >= high;
  }

  async fetch(low, high) {
    const mine = (this.asked += 1);
    const answer = await fetch(`${this.box.dataset.url}?first=${low}&last=${high}`, { headers: { Accept: "application/json" } });
    if (!answer.ok || mine !== this.asked) return;
    const { events } = await answer.json();
    this.fetched = Object.assign(new Series(), { low, high });
    this.fetched.append(events);
  }

  draw(low, high) {
    const whole = this.thinned && this.fetched ? this.fetched : this.series;
    const columns = COLUMNS.filter(([key]) => this.series[key].some((value) => value !== null));
    const rows = whole.steps.map((step, at) => ({ step, at })).filter(({ step }) => step >= low && step <= high);
    if (this.newestFirst) rows.reverse();
    const table = make("table", "table");
    table.createTHead().append(this.head(columns));
    const body = table.createTBody();
    for (const { step, at } of rows) {
      const row = body.insertRow();
      const name = make("th", "num", count(step));
      name.scope = "row";
      row.append(name, ...columns.map(([key, , format]) => cell(whole[key][at], format)), make("td", "soft", this.happened(step)));
    }
    this.table.replaceChildren(table);
    this.pages.hidden = false;
    this.go.hidden = low === this.first && high === this.series.last;
    this.words.textContent = rows.length ? `Steps ${count(low)} to ${count(high)} of ${count(this.series.last)}` : `There is no such step among ${count(this.series.last)}`;
    this.later.disabled = high >= this.series.last;
    this.earlier.disabled = low <= this.first;
  }

  head(columns) {
    const row = document.createElement("tr");
    const step = make("th", "num");
    step.scope = "col";
    step.setAttribute("aria-sort", this.newestFirst ? "descending" : "ascending");
    const button = make("button", "sort", `Step ${this.newestFirst ? "↓" : "↑"}`);
    button.type = "button";
    button.dataset.stepsSort = "";
    button.title = this.newestFirst ? "Newest first; show the earliest first" : "Earliest first; show the newest first";
    step.append(button);
    row.append(step, ...columns.map(([, name]) => header(name, "num")), header("What happened", ""));
    return row;
  }

  happened(step) {
    return this.series.marks.filter((mark) => mark.step === step && mark.kind !== "evaluation").map(({ text }) => text).join(", ");
  }
}

function header(name, className) {
  const cell = make("th", className, name);
  cell.scope = "col";
  return cell;
}

function cell(value, format) {
  const box = make("td", "num", format(value));
  if (value != null) box.title = value;
  return box;
}
