// The metrics of one run as columns: steps in order, one value or null for each, repeats of a later attempt in place of the earlier.
const COLUMNS = ["loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second", "memory"];

export class Series {
  constructor() {
    this.steps = [];
    this.checkpoints = [];
    this.attempt = 0;
    for (const name of COLUMNS) this[name] = [];
  }

  /** Takes events of any type; true where one of them changed a chart. */
  append(events) {
    let changed = false;
    for (const event of events) {
      if (event.type !== "metric" && event.type !== "checkpoint") continue;
      this.beginAttempt(event);
      if (event.type === "checkpoint") this.checkpoints.push(event.step);
      else this.add(event);
      changed = true;
    }
    return changed;
  }

  /** A new attempt goes on from a checkpoint, or from the start: what the old one did after that is gone. */
  beginAttempt(event) {
    if (event.attempt === this.attempt) return;
    this.attempt = event.attempt;
    const keep = this.steps.findIndex((step) => step >= event.step);
    if (keep < 0) return;
    this.steps.length = keep;
    for (const name of COLUMNS) this[name].length = keep;
    this.checkpoints = this.checkpoints.filter((step) => step < event.step);
  }

  add(event) {
    let at = this.steps.length - 1;
    if (at < 0 || this.steps[at] < event.step) {
      at = this.steps.push(event.step) - 1;
      for (const name of COLUMNS) this[name].push(null);
    }
    for (const name of COLUMNS) if (Number.isFinite(event[name])) this[name][at] = event[name];
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

  /** falling, rising or steady: the smoothed loss against what it was a tenth of the run ago. */
  trend() {
    const line = this.smooth("loss").filter((value) => value !== null);
    if (line.length < 6) return "";
    const now = line.at(-1);
    const before = line.at(-1 - Math.max(5, Math.floor(line.length / 10))) ?? line[0];
    const change = (now - before) / Math.abs(before || 1);
    if (change < -0.005) return "falling";
    return change > 0.005 ? "rising" : "steady";
  }
}
