// The charts of a comparison, sharing one cursor: each arm in its colour and dash, its seeds as thin lines and their mean as a thick one.
// Hover or arrow keys read all arms at one place, drag zooms, double-click or Escape resets. Needs uPlot as a global.
import { make } from "./dom.js";
import { bytes, count, distinct, figure } from "./format.js";
import { meanAt, meanLine, RunCurve } from "./run-curves.js";
import { span } from "./times.js";

const REST = 200; // ms between two drawings
const COLOURS = ["--lora-indigo", "--full-orange", "--hue-2", "--hue-3", "--hue-4", "--hue-5", "--hue-6"];
const DASHES = [[], [9, 4], [2, 3], [10, 3, 2, 3], [5, 3], [14, 4]];
const GREYS = ["--grid", "--ink-3", "--surface"];
const MOST_TOLD = 6; // arms whose values stand in the head of a small chart

const WHOLE = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();
const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800];
const AXES = {
  step: { incrs: WHOLE, tick: count, told: (x) => `Step ${count(Math.round(x))}` },
  tokens: { incrs: WHOLE, tick: (x) => short(x), told: (x) => `${short(x)} tokens` },
  time: { incrs: SECONDS, tick: (x) => (x ? span(x) : "0"), told: (x) => `After ${span(x)}` },
  cost: { tick: (x) => figure(x), told: (x, currency) => `At ${figure(x)} ${currency}`.trim() },
};
const CHARTS = [
  { tall: true, format: figure },
  { title: "Memory", key: "memory", format: bytes, fromZero: true },
  { title: "Tokens a second", key: "speed", format: count, fromZero: true },
];
const TITLES = { loss: "Training loss", validation: "Validation loss" };

function short(value) {
  if (value >= 1e6) return `${figure(value / 1e6)} M`;
  return value >= 1e4 ? `${count(value / 1000)} k` : count(value);
}

/** `arms`: [{number, name, colour, dash}]; `view`: {x, y, smoothed, hidden: Set of arms}; `legend`: where their buttons go. */
export class Overlay {
  constructor(root, legend, { arms, view, onToggle }) {
    Object.assign(this, { root, legend, arms, view, onToggle, runs: new Map(), currency: "" });
    this.palette = new Palette();
    this.sync = uPlot.sync(`comparison-${Math.random()}`);
    this.charts = CHARTS.map((spec) => new Chart(spec, this));
    root.append(...this.charts.map((chart) => chart.figure));
    this.values = new Map();
    this.buttons = new Map(arms.map((arm) => [arm.number, this.legendButton(arm)]));
    legend.append(...this.buttons.values());
    for (const chart of this.charts) chart.mount();
    document.addEventListener("studio:theme", () => {
      this.palette.read();
      for (const chart of this.charts) chart.plot?.redraw(false);
    });
  }

  /** Takes the pieces of an answer. */
  take({ runs, currency }) {
    let changed = false;
    for (const piece of runs) {
      if (!this.runs.has(piece.id)) this.runs.set(piece.id, new RunCurve(piece));
      changed ||= piece.whole || piece.points.step.length > 0 || piece.looks.step.length > 0;
      this.runs.get(piece.id).take(piece);
    }
    this.currency = currency;
    if (changed) this.redraw();
  }

  get stands() {
    return [...this.runs.values()].map((run) => run.stands).join();
  }

  get priced() {
    return [...this.runs.values()].some((run) => run.perHour != null);
  }

  has(name) {
    return [...this.runs.values()].some((run) => run.line(name, "step").xs.length);
  }

  redraw() {
    if (!this.waiting) this.waiting = setTimeout(() => requestAnimationFrame(() => this.draw()), REST);
  }

  draw() {
    clearTimeout(this.waiting);
    this.waiting = 0;
    for (const [arm, button] of this.buttons) button.setAttribute("aria-pressed", !this.view.hidden.has(arm));
    this.zooming = true; // uPlot tells of its scales a little later, and a drawing is nobody's zoom
    for (const chart of this.charts) chart.draw();
    setTimeout(() => (this.zooming = false));
  }

  /** The lines of the arms that are shown: [{arm, each: [line], thin: those of `each` that are drawn beside the mean, mean: line}]. */
  lines(name) {
    const { x, smoothed, hidden } = this.view;
    return this.arms.filter(({ number }) => !hidden.has(number)).map((arm) => {
      const each = [...this.runs.values()].filter((run) => run.arm === arm.number).map((run) => run.line(name, x, smoothed));
      return { arm, each, thin: each.length > 1 ? each.filter(({ xs }) => xs.length) : [], mean: meanLine(each) };
    });
  }

  legendButton(arm) {
    const button = make("button", "overlay-arm");
    button.type = "button";
    this.values.set(arm.number, make("b", "", "–"));
    button.append(swatch(arm), make("span", "", arm.name), this.values.get(arm.number));
    button.addEventListener("click", () => this.onToggle(arm.number));
    return button;
  }

  tell(values) {
    for (const [arm, place] of this.values) place.textContent = values.has(arm) ? figure(values.get(arm)) : "–";
  }
}

/** A short piece of an arm's line. */
function swatch({ colour, dash }) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("class", `overlay-swatch dot-${colour + 1}`);
  svg.setAttribute("viewBox", "0 0 28 8");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", "M1 4H27");
  line.setAttribute("stroke-dasharray", DASHES[dash].join(" "));
  svg.append(line);
  return svg;
}

/** Colours as the canvas needs them: custom properties resolved in the present theme. */
class Palette {
  constructor() {
    this.probe = make("i");
    this.probe.hidden = true;
    document.body.append(this.probe);
    this.read();
  }

  read() {
    this.found = {};
    for (const each of [...COLOURS, ...GREYS]) {
      this.probe.style.color = `var(${each})`;
      this.found[each] = getComputedStyle(this.probe).color;
    }
  }

  of(name, alpha = 1) {
    return alpha === 1 ? this.found[name] : this.found[name].replace(/\)$/, ` / ${alpha})`);
  }
}

class Chart {
  constructor(spec, overlay) {
    Object.assign(this, { spec, overlay, drawn: [] });
    this.figure = make("figure", "chart");
    const caption = make("figcaption");
    this.title = make("h3", "", spec.title ?? "");
    this.legend = make("div", "chart-legend");
    this.place = make("span");
    this.values = make("span", "overlay-values");
    this.legend.append(this.place, this.values);
    caption.append(this.title, this.legend);
    this.box = make("div", `chart-plot${spec.tall ? " tall" : ""}`);
    this.empty = make("p", "chart-empty");
    this.figure.append(caption, this.box);
    this.figure.hidden = !spec.tall;
  }

  get name() {
    return this.spec.key ?? this.overlay.view.y;
  }

  mount() {
    const { box } = this;
    box.tabIndex = 0;
    box.setAttribute("role", "slider");
    box.setAttribute("aria-valuemin", 0);
    box.setAttribute("aria-valuemax", 0);
    box.setAttribute("aria-valuenow", 0);
    box.setAttribute("aria-valuetext", "No figures yet");
    box.setAttribute("aria-label", this.spec.title ?? "Losses");
    box.append(this.empty);
    box.addEventListener("keydown", (event) => this.move(event));
    box.addEventListener("blur", () => this.overlay.charts.forEach((chart) => chart.plot?.setCursor({ left: -10, top: -10 })));
    new ResizeObserver(() => box.clientWidth && this.plot?.setSize(this.size)).observe(box);
  }

  get size() {
    return { width: this.box.clientWidth || 300, height: this.box.clientHeight || 148 };
  }

  draw() {
    const { overlay, spec } = this;
    this.lines = overlay.lines(this.name);
    this.title.textContent = spec.title ?? TITLES[this.name];
    this.figure.hidden = !spec.tall && !this.lines.some(({ mean }) => mean.xs.length);
    if (this.figure.hidden) return;
    const drawn = this.lines.flatMap(({ arm, thin, mean }) => [...thin.map((line) => ({ arm, line, thin: true })), { arm, line: mean }]).filter(({ line }) => line.xs.length);
    const shape = `${this.name} ${overlay.view.x} ${drawn.map(({ arm, thin }) => `${arm.number}${thin ? "t" : ""}`)}`;
    const data = drawn.length ? uPlot.join(drawn.map(({ line }) => [line.xs, line.ys])) : [[]];
    if (shape !== this.shape) this.build(drawn, data);
    else this.update(data);
    this.shape = shape;
    this.whole = [data[0][0], data[0].at(-1)];
    this.empty.hidden = drawn.length > 0;
    this.empty.textContent = overlay.view.hidden.size === overlay.arms.length ? "Every arm is hidden. Show one above." : this.name === "validation" ? "Nobody has looked at the validation rows yet." : "Figures come with the first steps.";
    this.tell();
  }

  build(drawn, data) {
    this.plot?.destroy();
    this.plot = drawn.length ? new uPlot(this.options(drawn), data, this.box) : null;
  }

  /** New figures do not move the view of somebody who looks at a part. */
  update(data) {
    if (!this.plot) return;
    const { zoomed } = this;
    this.plot.setData(data, !zoomed);
    if (zoomed) this.plot.redraw();
  }

  get zoomed() {
    const { min, max } = this.plot.scales.x;
    const [first, last] = this.whole ?? [];
    return min != null && first != null && (min > first || max < last);
  }

  options(drawn) {
    const { overlay, spec } = this;
    const { palette } = overlay;
    const x = AXES[overlay.view.x];
    const validation = this.name === "validation";
    return {
      ...this.size,
      legend: { show: false },
      padding: [8, 18, 0, 0],
      cursor: { sync: { key: overlay.sync.key, setSeries: false }, drag: { x: true, y: false, dist: 6 }, points: { show: false }, focus: { prox: -1 } },
      scales: { x: { time: false }, y: spec.fromZero ? { range: (_, low, high) => [0, (high || 1) * 1.25] } : {} },
      axes: [
        axis(palette, { values: (_, ticks) => ticks.map(x.tick), size: 28, ...(x.incrs && { incrs: x.incrs }) }),
        axis(palette, { values: (_, ticks) => (spec.fromZero ? ticks.map(spec.format) : distinct(ticks)), size: spec.tall ? 52 : 60 }),
      ],
      series: [{}, ...drawn.map(({ arm, thin, line }) => ({
        stroke: () => palette.of(COLOURS[arm.colour], thin ? 0.38 : 1),
        width: thin ? 1 : 2.25,
        dash: thin ? [] : DASHES[arm.dash],
        spanGaps: true,
        points: { show: validation && !thin && line.xs.length < 60, size: 6, width: 1.5, fill: () => palette.of("--surface") },
      }))],
      hooks: { setCursor: [() => this.tell()], setScale: [(plot, key) => key === "x" && this.zoomOthers(plot)] },
    };
  }

  /** What somebody zooms into in one chart is shown by all, and so is the whole. */
  zoomOthers({ scales }) {
    const { overlay } = this;
    if (overlay.zooming) return;
    overlay.zooming = true;
    for (const other of overlay.charts) if (other !== this) other.plot?.setScale("x", this.zoomed ? { min: scales.x.min, max: scales.x.max } : { min: other.whole[0], max: other.whole[1] });
    setTimeout(() => (overlay.zooming = false));
  }

  /** What every arm has at the cursor, or last. */
  tell() {
    const { overlay, spec, plot, lines = [] } = this;
    const x = plot?.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null;
    const values = new Map(lines.map(({ arm, each, mean }) => [arm.number, x === null ? mean.ys.at(-1) : meanAt(each, x)]).filter(([, value]) => value != null));
    const where = x === null ? "" : AXES[overlay.view.x].told(x, overlay.currency);
    if (this.place.textContent !== where) this.place.textContent = where;
    if (spec.tall) overlay.tell(values);
    else this.values.replaceChildren(...(lines.length > MOST_TOLD ? [] : lines.map(({ arm }) => valueOf(arm, values.has(arm.number) ? spec.format(values.get(arm.number)) : "–"))));
    const said = lines.map(({ arm }) => `${arm.name} ${values.has(arm.number) ? spec.format(values.get(arm.number)) : "none"}`);
    this.box.setAttribute("aria-valuemax", Math.round(this.whole?.[1] ?? 0));
    this.box.setAttribute("aria-valuenow", Math.round(x ?? this.whole?.[1] ?? 0));
    this.box.setAttribute("aria-valuetext", lines.some(({ mean }) => mean.xs.length) ? [where, ...said].filter(Boolean).join(", ") : "No figures yet");
  }

  move(event) {
    const { plot } = this;
    if (!plot) return;
    const { min, max } = plot.scales.x;
    const wide = plot.bbox.width / devicePixelRatio;
    const jump = (event.shiftKey ? 10 : 1) * (wide / 100);
    const now = plot.cursor.left >= 0 ? plot.cursor.left : wide;
    if (event.key === "Escape") for (const each of this.overlay.charts) each.plot?.setScale("x", { min: each.whole[0], max: each.whole[1] });
    else {
      const to = { ArrowRight: now + jump, ArrowLeft: now - jump, Home: 0, End: wide }[event.key];
      if (to === undefined || min == null || max == null) return;
      plot.setCursor({ left: Math.min(wide, Math.max(0, to)), top: 1 });
    }
    event.preventDefault();
  }
}

function valueOf(arm, text) {
  const entry = make("span");
  entry.append(make("i", `swatch dot-${arm.colour + 1}`), make("span", "visually-hidden", arm.name), make("b", "", text));
  return entry;
}

function axis(palette, more) {
  return { stroke: () => palette.of("--ink-3"), font: "11px Inter, sans-serif", gap: 6, ticks: { show: false }, grid: { stroke: () => palette.of("--grid"), width: 1 }, ...more };
}
