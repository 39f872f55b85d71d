// The charts of a run, sharing one cursor: hover or arrow keys read exact values, page keys go from mark to mark, drag zooms, double-click or
// Escape resets. mountCharts(root, {onCursor}) answers {append(events), showStep(step), series}. Needs uPlot as a global.
import { make } from "./dom.js";
import { bytes, count, distinct, figure, share } from "./format.js";
import { Series } from "./series.js";

const REST = 250; // ms between two drawings while events stream in
const NEAR = 6; // pixels from the cursor within which a mark is told
const HINT = "Exponential moving average: each point is the mean of those before it, half of its weight on the last hundredth of them. The pale line is each step as it was.";

// fromZero: the axis starts at 0, so that noise looks as small as it is; most: and ends there; optional: only where there are figures for it
// key: column of Series; smooth: drawn smoothed; faint: the raw line behind it; points: dots; right: on an axis of its own
const CHARTS = [
  { title: "Loss", tall: true, lines: [
    { key: "loss", colour: "method", faint: true },
    { key: "loss", name: "training", colour: "method", smooth: true },
    { key: "validation_loss", name: "validation", colour: "--hue-2", points: true },
  ] },
  { title: "Learning rate", lines: [{ key: "learning_rate", name: "", colour: "method" }] },
  { title: "Gradient norm", lines: [
    { key: "grad_norm", colour: "method", faint: true },
    { key: "grad_norm", name: "", colour: "method", smooth: true },
  ] },
  { title: "Speed and memory", fromZero: true, lines: [
    { key: "tokens_per_second", colour: "--hue-2", faint: true, format: count },
    { key: "tokens_per_second", name: "tokens/s", colour: "--hue-2", smooth: true, format: count },
    { key: "memory", name: "memory", colour: "--hue-1", format: bytes, right: true },
  ] },
  { title: "Better answers preferred", optional: true, fromZero: true, most: 1, lines: [
    { key: "accuracy", colour: "method", faint: true, format: share },
    { key: "accuracy", name: "training", colour: "method", smooth: true, format: share },
    { key: "validation_accuracy", name: "validation", colour: "--hue-2", points: true, format: share },
    { key: "margin", name: "margin", colour: "--hue-1", smooth: true, right: true },
  ] },
  { title: "Device", optional: true, fromZero: true, most: 100, lines: [
    { key: "utilisation", name: "busy", colour: "--hue-2", smooth: true, format: (value) => share(value / 100) },
    { key: "power", name: "power", colour: "--hue-1", smooth: true, format: (value) => `${count(value)} W`, right: true },
  ] },
  { title: "Padding", optional: true, fromZero: true, lines: [{ key: "padding", name: "of all tokens", colour: "--hue-4", format: share }] },
];
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((power) => [power, 2 * power, 5 * power]);
const METHODS = { lora: "--lora-indigo", full: "--full-orange" };
const MARKS = { // in the order in which they stand side by side
  evaluation: { name: "Evaluation", colour: "--hue-2" },
  pause: { name: "Pause", colour: "--amber" },
  resume: { name: "Resume", colour: "--amber" },
  checkpoint: { name: "Checkpoint", colour: "--ink-2" },
};

export function mountCharts(root, { onCursor = () => {} } = {}) {
  const series = new Series();
  const palette = colours(root);
  const shared = { root, series, palette, sync: uPlot.sync(`run-${Math.random()}`), view: { smoothed: true } };
  const charts = CHARTS.map((spec) => new Chart({ spec, ...shared }));
  const key = new Key();
  root.append(...charts.map((chart) => chart.figure), key.box);
  for (const chart of charts) chart.mount();
  charts[0].legend.after(smoothing(shared.view, charts));
  keepTogether(charts, onCursor);

  let waiting = 0;
  const draw = () => {
    waiting = 0;
    for (const chart of charts) chart.draw();
    key.draw(series.marks);
  };
  document.addEventListener("studio:theme", () => {
    palette.read();
    for (const chart of charts) chart.plot.redraw(false);
  });
  return {
    series,
    append(events) {
      if (series.append(events) && !waiting) waiting = setTimeout(() => requestAnimationFrame(draw), REST);
    },
    showStep(step) {
      for (const chart of charts) chart.showStep(step);
    },
  };
}

/** A button that shows the lines as they are, without their smoothed ones. */
function smoothing(view, charts) {
  const box = make("span", "term");
  const button = make("button", "button compact", "Smoothed");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.setAttribute("aria-describedby", "smoothing-hint");
  const hint = make("span", "tooltip", HINT);
  hint.id = "smoothing-hint";
  hint.setAttribute("role", "tooltip");
  button.addEventListener("click", () => {
    view.smoothed = !view.smoothed;
    button.setAttribute("aria-pressed", view.smoothed);
    for (const chart of charts) chart.showSmoothed();
  });
  box.append(button, hint);
  return box;
}

/** Colours as the canvas needs them: custom properties resolved in the present theme. */
function colours(root) {
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const method = METHODS[root.dataset.method] ?? "--base-grey";
  const names = ["--grid", "--ink-3", "--surface", "--line-control", ...Object.values(METHODS), "--base-grey", "--hue-1", "--hue-2", "--hue-4", "--ink-2", "--amber"];
  const read = {};
  const name = (line) => (line === "method" ? method : line);
  return {
    name,
    of: (line) => read[name(line)],
    read() {
      for (const each of names) {
        probe.style.color = `var(${each})`;
        read[each] = getComputedStyle(probe).color;
      }
      return this;
    },
  }.read();
}

class Chart {
  constructor({ spec, root, series, palette, sync, view }) {
    Object.assign(this, { spec, series, palette, sync, view });
    this.figure = make("figure", "chart");
    const caption = make("figcaption");
    this.legend = make("div", "chart-legend");
    caption.append(make("h2", "", spec.title), this.legend);
    this.box = make("div", `chart-plot${spec.tall ? " tall" : ""}`);
    this.empty = make("p", "chart-empty", "Figures come with the first steps.");
    this.told = make("p", "chart-told");
    this.told.hidden = true;
    this.figure.append(caption, this.box);
    this.figure.hidden = Boolean(spec.optional);
    this.step = make("span");
    this.legend.append(this.step);
    this.right = spec.lines.find((line) => line.right);
    this.shown = spec.lines.filter((line) => !line.faint).map((line) => ({ ...line, ...this.legendEntry(line) }));
    makeSlider(this);
  }

  legendEntry(line) {
    const entry = make("span");
    const swatch = make("i", `swatch${line.points ? " points" : ""}`);
    swatch.style.background = `var(${this.palette.name(line.colour)})`;
    const value = make("b", "", "–");
    entry.append(swatch, line.name, value);
    this.legend.append(entry);
    return { entry, value };
  }

  mount() {
    this.plot = new uPlot(this.options(), this.data(), this.box);
    this.box.append(this.empty, this.told);
    new ResizeObserver(() => this.box.clientWidth && this.plot.setSize(this.size())).observe(this.box);
    this.draw();
  }

  size() {
    return { width: this.box.clientWidth || 300, height: this.box.clientHeight || 148 };
  }

  options() {
    const { palette, spec, right } = this;
    return {
      ...this.size(),
      legend: { show: false },
      padding: [spec.tall ? 14 : 8, 18, 0, 0],
      cursor: {
        sync: { key: this.sync.key },
        drag: { x: true, y: false, dist: 6 },
        points: { size: 7, width: 0 },
        focus: { prox: -1 },
      },
      scales: { x: { time: false }, right: { range: upTo(1.2) }, ...(spec.fromZero && { y: { range: spec.most ? [0, spec.most] : upTo(1.6) } }) },
      axes: [
        axis(palette, { values: (plot, ticks) => ticks.map(count), incrs: WHOLE, size: 26 }),
        axis(palette, { values: (plot, ticks) => (spec.lines[0].format ? ticks.map(spec.lines[0].format) : distinct(ticks)), size: 48 }),
        ...(right ? [axis(palette, { scale: "right", side: 1, values: (plot, ticks) => ticks.map(right.format ?? figure), size: 56, grid: { show: false } })] : []),
      ],
      series: [{}, ...spec.lines.map((line) => drawn(line, palette, this.view))],
      hooks: {
        setCursor: [() => this.tell()],
        drawAxes: spec.tall ? [(plot) => this.drawMarks(plot)] : [],
      },
    };
  }

  data() {
    const smooth = (line) => line.smooth && this.view.smoothed;
    return [this.series.steps, ...this.spec.lines.map((line) => (smooth(line) ? this.series.smooth(line.key) : this.series[line.key]))];
  }

  draw() {
    const { series, spec } = this;
    this.figure.hidden = !spec.tall && (spec.optional || series.has("loss")) && !spec.lines.some((line) => series.has(line.key));
    if (this.figure.hidden) return;
    if (spec.optional) for (const { entry, key } of this.shown) entry.hidden = !series.has(key);
    const zoomed = this.zoomed;
    this.plot.setData(this.data(), !zoomed);
    if (zoomed) this.plot.redraw();
    else this.whole = [series.steps[0], series.steps.at(-1)];
    this.empty.hidden = spec.lines.some((line) => series[line.key].some((value) => value !== null));
    this.tell();
  }

  /** Of two lines for one metric, the pale one is drawn in full where nothing is smoothed. */
  showSmoothed() {
    this.plot.setData(this.data(), !this.zoomed);
    this.plot.redraw();
  }

  /** True while somebody looks at a part; then new figures do not move the view. */
  get zoomed() {
    const { min, max } = this.plot.scales.x;
    const [first, last] = this.whole ?? [];
    return min != null && first != null && (min > first || max < last);
  }

  get index() {
    return this.plot.cursor.idx ?? this.series.steps.length - 1;
  }

  /** Values at the cursor, or the latest ones. */
  tell() {
    const hovering = this.plot?.cursor.idx != null;
    const at = this.series.steps[this.index];
    this.step.textContent = hovering ? `step ${count(at)}` : "";
    const said = [`Step ${count(at)}`];
    for (const { key, name, value, entry, format = figure } of this.shown) {
      const found = nearest(this.series[key], this.index, hovering);
      value.textContent = found == null ? "–" : format(found);
      value.title = found ?? "";
      if (!entry.hidden) said.push(`${name || this.spec.title} ${value.textContent}`);
    }
    const happened = hovering ? this.tellMarks() : "";
    this.box.setAttribute("aria-valuenow", at ?? 0);
    this.box.setAttribute("aria-valuemax", this.series.last);
    this.box.setAttribute("aria-valuetext", this.series.steps.length ? [...said, happened].filter(Boolean).join(", ") : "No figures yet");
    if (!hovering) this.told.hidden = true;
  }

  /** What happened near the cursor, in a label beside it. */
  tellMarks() {
    if (!this.spec.tall) return "";
    const { left } = this.plot.cursor;
    const here = this.series.marks.filter(({ step }) => Math.abs(this.plot.valToPos(step, "x") - left) < NEAR);
    const text = here.length ? `Step ${count(here.at(-1).step)}: ${[...new Set(here.map((mark) => mark.text))].join(", ")}` : "";
    this.told.hidden = !text;
    this.told.textContent = text;
    const middle = this.plot.bbox.left / devicePixelRatio + left;
    const most = this.box.clientWidth - this.told.offsetWidth;
    this.told.style.translate = `${Math.max(0, Math.min(most, middle - this.told.offsetWidth / 2))}px 0`;
    return text;
  }

  showStep(step) {
    const left = step === null ? -10 : this.plot.valToPos(step, "x");
    this.plot.setCursor({ left, top: left < 0 ? -10 : 1 });
  }

  /** A line for what interrupts the training or can be gone back to; on the upper edge, side by side, a sign for all that happened at a step. */
  drawMarks({ ctx, bbox, valToPos, scales }) {
    ctx.save();
    const ratio = devicePixelRatio;
    ctx.lineWidth = ratio;
    ctx.setLineDash([2 * ratio, 4 * ratio]);
    let free = -Infinity; // left of here signs stand already: very many would be one bar
    for (const [step, kinds] of kindsByStep(this.series.marks)) {
      const x = valToPos(step, "x", true);
      if (step < scales.x.min || step > scales.x.max || x < free) continue;
      free = x + 8 * ratio;
      const lines = kinds.filter((kind) => kind !== "evaluation");
      if (lines.length) {
        ctx.strokeStyle = this.palette.of(lines[0] === "checkpoint" ? "--line-control" : MARKS[lines[0]].colour);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      kinds.forEach((kind, place) => {
        ctx.fillStyle = this.palette.of(MARKS[kind].colour);
        ctx.fill(sign(kind, { x: x + (place - (kinds.length - 1) / 2) * 9 * ratio, y: bbox.top - 7 * ratio, size: 3.5 * ratio }));
      });
    }
    ctx.restore();
  }
}

/** Steps in order, each with the kinds of its marks in the order of MARKS. */
function kindsByStep(marks) {
  const found = new Map();
  for (const { step, kind } of marks) found.set(step, (found.get(step) ?? new Set()).add(kind));
  return [...found].sort(([a], [b]) => a - b).map(([step, kinds]) => [step, Object.keys(MARKS).filter((kind) => kinds.has(kind))]);
}

function sign(kind, { x, y, size }) {
  const path = new Path2D();
  if (kind === "evaluation") path.arc(x, y, size * 0.9, 0, 2 * Math.PI);
  else if (kind === "pause") {
    path.rect(x - size, y - size, size * 0.7, 2 * size);
    path.rect(x + size * 0.3, y - size, size * 0.7, 2 * size);
  } else {
    const corners = kind === "resume" ? [[-1, -1], [1, 0], [-1, 1]] : [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]];
    for (const [right, down] of corners) path.lineTo(x + right * size, y + down * size);
    path.closePath();
  }
  return path;
}

const upTo = (share) => (plot, low, high) => (high == null ? [null, null] : [0, (high || 1) * share]);

function drawn(line, palette, view) {
  const dots = { size: 6, width: 1.5, fill: () => palette.of("--surface") };
  return {
    scale: line.right ? "right" : "y",
    stroke: () => (line.faint && view.smoothed ? withAlpha(palette.of(line.colour), 0.3) : palette.of(line.colour)),
    width: line.faint ? 1 : 2,
    spanGaps: true,
    points: line.points ? { show: true, ...dots } : { show: false },
  };
}

const withAlpha = (colour, alpha) => colour.replace(/\)$/, ` / ${alpha})`);

function axis(palette, more) {
  return {
    stroke: () => palette.of("--ink-3"),
    font: "11px Inter, sans-serif",
    gap: 6,
    ticks: { show: false },
    grid: { stroke: () => palette.of("--grid"), width: 1 },
    ...more,
  };
}

/** The value at an index, or the closest one before it (validation stands at a few steps only). */
function nearest(values, index, exactly) {
  for (let at = index; at >= 0; at -= 1) {
    if (values[at] != null) return values[at];
    if (exactly && index - at > values.length / 4) return null;
  }
  return null;
}

/** A zoom in one chart is a zoom in all; the cursor's step goes to whoever asked. */
function keepTogether(charts, onCursor) {
  let busy = false;
  for (const chart of charts) {
    (chart.plot.hooks.setScale ??= []).push((plot, key) => {
      if (key !== "x" || busy) return;
      busy = true;
      const { min, max } = plot.scales.x;
      for (const other of charts) if (other !== chart) other.plot.setScale("x", { min, max });
      busy = false;
    });
    chart.box.addEventListener("pointermove", () => onCursor(chart.series.steps[chart.plot.cursor.idx] ?? null));
    chart.box.addEventListener("pointerleave", () => onCursor(null));
    chart.box.addEventListener("blur", () => {
      for (const each of charts) each.showStep(null);
      onCursor(null);
    });
    chart.box.addEventListener("keydown", (event) => {
      if (moveByKey(chart, event)) {
        const step = chart.series.steps[chart.plot.cursor.idx] ?? null;
        for (const other of charts) if (other !== chart && step !== null) other.showStep(step);
        onCursor(step);
        event.preventDefault();
      }
    });
  }
}

function makeSlider({ box, spec }) {
  box.tabIndex = 0;
  box.setAttribute("role", "slider");
  box.setAttribute("aria-label", `${spec.title} by step`);
  box.setAttribute("aria-valuemin", 0);
}

function moveByKey(chart, event) {
  const { series } = chart;
  const last = series.steps.length - 1;
  const jump = event.shiftKey ? 10 : 1;
  if (event.key === "Escape") {
    chart.plot.setScale("x", { min: series.steps[0], max: series.steps[last] });
    return true;
  }
  if (event.key === "PageUp" || event.key === "PageDown") return moveToMark(chart, event.key === "PageUp" ? 1 : -1);
  const to = { ArrowRight: chart.index + jump, ArrowLeft: chart.index - jump, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return false;
  chart.showStep(series.steps[Math.min(last, Math.max(0, to))]);
  return true;
}

/** To the next mark (way 1) or the one before (way -1); as with every slider, page up goes up. */
function moveToMark(chart, way) {
  const now = chart.series.steps[chart.index];
  const steps = [...new Set(chart.series.marks.map(({ step }) => step))].sort((a, b) => way * (a - b));
  const next = steps.find((step) => way * (step - now) > 0);
  if (next === undefined) return false;
  chart.showStep(next);
  return true;
}

/** What the signs on the loss chart mean, as far as there are such. */
class Key {
  constructor() {
    this.box = make("div", "charts-foot");
    this.list = make("div", "marks-key");
    this.box.append(this.list, make("span", "push", "Drag to zoom, double-click to see all. Arrow keys read the steps, page keys go from mark to mark."));
  }

  draw(marks) {
    const kinds = Object.keys(MARKS).filter((kind) => marks.some((mark) => mark.kind === kind));
    if (kinds.join() === this.kinds) return;
    this.kinds = kinds.join();
    this.list.replaceChildren(...kinds.map((kind) => {
      const entry = make("span");
      entry.append(make("i", `progress-mark ${kind}`), MARKS[kind].name);
      return entry;
    }));
  }
}
