// The four charts of a run, sharing one cursor: hover or arrow keys read exact values, drag zooms, double-click or Escape resets.
// mountCharts(root, {onCursor}) answers {append(events), showStep(step), series}. Needs uPlot as a global.
import { bytes, count, distinct, figure } from "./format.js";
import { Series } from "./series.js";

const REST = 250; // ms between two drawings while events stream in
const TABLE_ROWS = 500;

// fromZero: the axis starts at 0, so that noise looks as small as it is; key: column of Series; smooth: drawn smoothed; faint: the raw line behind it; points: dots
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
    { key: "memory", name: "memory", colour: "--hue-1", format: bytes, scale: "memory" },
  ] },
];
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((power) => [power, 2 * power, 5 * power]);
const METHODS = { lora: "--lora-indigo", full: "--full-orange" };

export function mountCharts(root, { onCursor = () => {} } = {}) {
  const series = new Series();
  const palette = colours(root);
  const sync = uPlot.sync(`run-${Math.random()}`);
  const charts = CHARTS.map((spec) => new Chart({ spec, root, series, palette, sync }));
  const table = new Table(series);
  root.append(...charts.map((chart) => chart.figure), foot(table));
  for (const chart of charts) chart.mount();
  keepTogether(charts, onCursor);

  let waiting = 0;
  const draw = () => {
    waiting = 0;
    for (const chart of charts) chart.draw();
    table.draw();
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

/** Colours as the canvas needs them: custom properties resolved in the present theme. */
function colours(root) {
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const method = METHODS[root.dataset.method] ?? "--base-grey";
  const names = ["--grid", "--ink-3", "--surface", "--line-control", ...Object.values(METHODS), "--base-grey", "--hue-1", "--hue-2"];
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
  constructor({ spec, root, series, palette, sync }) {
    Object.assign(this, { spec, series, palette, sync });
    this.figure = make("figure", "chart");
    const caption = make("figcaption");
    this.legend = make("div", "chart-legend");
    caption.append(make("h2", "", spec.title), this.legend);
    this.box = make("div", `chart-plot${spec.tall ? " tall" : ""}`);
    this.empty = make("p", "chart-empty", "Figures come with the first steps.");
    this.figure.append(caption, this.box);
    this.step = make("span");
    this.legend.append(this.step);
    this.shown = spec.lines.filter((line) => !line.faint).map((line) => ({ ...line, value: this.legendEntry(line) }));
    makeSlider(this);
  }

  legendEntry(line) {
    const entry = make("span");
    const swatch = make("i", `swatch${line.points ? " points" : ""}`);
    swatch.style.background = `var(${this.palette.name(line.colour)})`;
    const value = make("b", "", "–");
    entry.append(swatch, line.name, value);
    this.legend.append(entry);
    return value;
  }

  mount() {
    this.plot = new uPlot(this.options(), this.data(), this.box);
    this.box.append(this.empty);
    new ResizeObserver(() => this.plot.setSize(this.size())).observe(this.box);
    this.draw();
  }

  size() {
    return { width: this.box.clientWidth, height: this.box.clientHeight };
  }

  options() {
    const { palette, spec } = this;
    const right = spec.lines.some((line) => line.scale);
    return {
      ...this.size(),
      legend: { show: false },
      padding: [8, right ? 0 : 10, 0, 0],
      cursor: {
        sync: { key: this.sync.key },
        drag: { x: true, y: false, dist: 6 },
        points: { size: 7, width: 0 },
        focus: { prox: -1 },
      },
      scales: { x: { time: false }, memory: { range: upTo(1.2) }, ...(spec.fromZero && { y: { range: upTo(1.6) } }) },
      axes: [
        axis(palette, { values: (plot, ticks) => ticks.map(count), incrs: WHOLE, size: 26 }),
        axis(palette, { values: (plot, ticks) => (spec.lines[0].format ? ticks.map(spec.lines[0].format) : distinct(ticks)), size: 48 }),
        ...(right ? [axis(palette, { scale: "memory", side: 1, values: (plot, ticks) => ticks.map(bytes), size: 56, grid: { show: false } })] : []),
      ],
      series: [{}, ...spec.lines.map((line) => drawn(line, palette))],
      hooks: {
        setCursor: [() => this.tell()],
        drawAxes: spec.tall ? [(plot) => this.drawCheckpoints(plot)] : [],
      },
    };
  }

  data() {
    return [this.series.steps, ...this.spec.lines.map((line) => (line.smooth ? this.series.smooth(line.key) : this.series[line.key]))];
  }

  draw() {
    const zoomed = this.zoomed;
    this.plot.setData(this.data(), !zoomed);
    if (zoomed) this.plot.redraw();
    else this.whole = [this.series.steps[0], this.series.steps.at(-1)];
    this.empty.hidden = this.spec.lines.some((line) => this.series[line.key].some((value) => value !== null));
    this.tell();
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
    this.step.textContent = hovering ? `step ${count(this.series.steps[this.index])}` : "";
    const said = [`Step ${count(this.series.steps[this.index])}`];
    for (const { key, name, value, format = figure } of this.shown) {
      const found = nearest(this.series[key], this.index, hovering);
      value.textContent = format(found);
      value.title = found ?? "";
      said.push(`${name || this.spec.title} ${format(found)}`);
    }
    this.box.setAttribute("aria-valuenow", this.series.steps[this.index] ?? 0);
    this.box.setAttribute("aria-valuemax", this.series.steps.at(-1) ?? 0);
    this.box.setAttribute("aria-valuetext", this.series.steps.length ? said.join(", ") : "No figures yet");
  }

  showStep(step) {
    const left = step === null ? -10 : this.plot.valToPos(step, "x");
    this.plot.setCursor({ left, top: left < 0 ? -10 : 1 });
  }

  drawCheckpoints({ ctx, bbox, valToPos, scales }) {
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = this.palette.of("--line-control");
    ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    for (const step of this.series.checkpoints) {
      if (step < scales.x.min || step > scales.x.max) continue;
      const x = valToPos(step, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }
}

const upTo = (share) => (plot, low, high) => (high == null ? [null, null] : [0, (high || 1) * share]);

function drawn(line, palette) {
  const dots = { size: 6, width: 1.5, fill: () => palette.of("--surface") };
  return {
    scale: line.scale ?? "y",
    stroke: () => (line.faint ? withAlpha(palette.of(line.colour), 0.3) : palette.of(line.colour)),
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
  const last = chart.series.steps.length - 1;
  const jump = event.shiftKey ? 10 : 1;
  const to = { ArrowRight: chart.index + jump, ArrowLeft: chart.index - jump, Home: 0, End: last }[event.key];
  if (event.key === "Escape") {
    chart.plot.setScale("x", { min: chart.series.steps[0], max: chart.series.steps[last] });
    return true;
  }
  if (to === undefined || last < 0) return false;
  chart.showStep(chart.series.steps[Math.min(last, Math.max(0, to))]);
  return true;
}

/** The same figures for whoever cannot see a chart. */
class Table {
  constructor(series) {
    this.series = series;
    this.box = make("details", "fold bare grow");
    const summary = make("summary", "", "Figures as a table");
    this.wrap = make("div", "table-wrap");
    this.wrap.tabIndex = 0;
    this.wrap.setAttribute("role", "region");
    this.wrap.setAttribute("aria-label", "Figures by step");
    const body = make("div", "fold-body");
    body.append(this.wrap);
    this.box.append(summary, body);
    this.box.addEventListener("toggle", () => this.draw());
  }

  draw() {
    if (!this.box.open) return;
    const { series } = this;
    const columns = [["Step", series.steps, count], ["Loss", series.loss, figure], ["Validation", series.validation_loss, figure],
      ["Learning rate", series.learning_rate, figure], ["Gradient norm", series.grad_norm, figure],
      ["Tokens/s", series.tokens_per_second, count], ["Memory", series.memory, bytes]];
    const every = Math.ceil(series.steps.length / TABLE_ROWS) || 1;
    const table = make("table", "table");
    const head = table.createTHead().insertRow();
    for (const [name] of columns) {
      const cell = make("th", "num", name);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    series.steps.forEach((_, at) => {
      if (at % every && series.validation_loss[at] === null) return;
      const row = body.insertRow();
      for (const [, values, format] of columns) row.append(make("td", "num", format(values[at])));
    });
    this.wrap.replaceChildren(table);
  }
}

function foot(table) {
  const box = make("div", "charts-foot");
  const how = make("span", "push", "Dotted lines are checkpoints. Drag to zoom, double-click to see all.");
  box.append(table.box, how);
  return box;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
