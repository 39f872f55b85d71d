// The metrics of one run as columns: steps in order, one value or null for each, repeats of a later attempt in place of the earlier.
// `marks` are what else happened, by step: {step, kind: checkpoint | evaluation | pause | resume, text}.
import { figure } from "./format.js";

export const COLUMNS = [
  "loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second", "memory", "padding", "utilisation", "power", "accuracy", "margin",
  "validation_accuracy", "validation_margin", "epoch", "tokens",
];

export class Series {
  constructor() {
    this.steps = [];
    this.marks = [];
    this.attempt = 0;
    for (const name of COLUMNS) this[name] = [];
  }

  get last() {
    return this.steps.at(-1) ?? 0;
  }

  /** Takes events of any type; true where one of them changed a chart. */
  append(events) {
    let changed = false;
    for (const event of events) {
      if (event.type === "end" ? event.status !== "paused" : event.type !== "metric" && event.type !== "checkpoint") continue;
      if (event.type === "end") this.mark(this.last, "pause", "paused");
      else {
        this.beginAttempt(event);
        if (event.type === "checkpoint") this.mark(event.step, "checkpoint", "checkpoint saved");
        else this.add(event);
      }
      changed = true;
    }
    return changed;
  }

  /** A new attempt goes on from a checkpoint, or from the start: what the old one did after that is gone. */
  beginAttempt(event) {
    if (event.attempt === this.attempt) return;
    const resumed = this.attempt > 0;
    this.attempt = event.attempt;
    const first = Number.isFinite(event.loss) ? event.step : event.step + 1; // a look at the step that it goes on from keeps that step
    const keep = this.steps.findIndex((step) => step >= first);
    if (keep >= 0) {
      this.steps.length = keep;
      for (const name of COLUMNS) this[name].length = keep;
      this.marks = this.marks.filter(({ step }) => step < first);
    }
    if (resumed) this.mark(first - 1, "resume", first > 1 ? "resumed" : "started again");
  }

  add(event) {
    let at = this.steps.length - 1;
    if (at < 0 || this.steps[at] < event.step) {
      at = this.steps.push(event.step) - 1;
      for (const name of COLUMNS) this[name].push(null);
    }
    for (const name of COLUMNS) if (Number.isFinite(event[name])) this[name][at] = event[name];
    if (Number.isFinite(event.validation_loss)) this.mark(event.step, "evaluation", `validation loss ${figure(event.validation_loss)}`);
  }

  mark(step, kind, text) {
    this.marks.push({ step, kind, text });
  }

  /** True where this metric came at least once, and was not always 0. */
  has(name) {
    return this[name].some(Boolean);
  }

  /** Exponential mean, corrected for its start; half of the weight lies on the last hundredth of the points. */
  smooth(name) {
    const values = this[name];
    const keep = 0.5 ** (1 / Math.max(2, values.length / 100));
    let mean = 0;
    let weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return mean / weight;
    });
  }

  /**
   * falling, rising or steady: the straight line through the last quarter of the losses (10 to 200 of them).
   * It counts as a slope where it is twice as steep as its standard error, and leads 1 % up or down.
   */
  trend() {
    const losses = this.loss.filter((value) => value !== null);
    const line = losses.slice(-Math.min(200, Math.max(10, losses.length >> 2)));
    if (line.length < 10) return "";
    const middle = (line.length - 1) / 2;
    const mean = line.reduce((sum, loss) => sum + loss, 0) / line.length;
    const spread = line.reduce((sum, _, at) => sum + (at - middle) ** 2, 0);
    const slope = line.reduce((sum, loss, at) => sum + (at - middle) * (loss - mean), 0) / spread;
    const rest = line.reduce((sum, loss, at) => sum + (loss - mean - slope * (at - middle)) ** 2, 0);
    const error = Math.sqrt(rest / (line.length - 2) / spread);
    const change = slope * line.length;
    if (Math.abs(slope) < 2 * error || Math.abs(change) < 0.01 * Math.abs(mean)) return "steady";
    return change < 0 ? "falling" : "rising";
  }
}
