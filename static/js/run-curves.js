// The curves of a comparison's runs as columns, filled piece by piece from /comparisons/<id>/curves/, and lines of them over steps, tokens,
// time or cost. What a later attempt does again takes the place of the earlier.
const COLUMNS = ["step", "attempt", "at", "loss", "tokens", "speed", "memory"];
const GRID = 240; // points of a mean line

export class RunCurve {
  constructor({ id, arm, seed }) {
    Object.assign(this, { id, arm, seed, points: emptied(COLUMNS), looks: emptied(["step", "attempt", "loss"]) });
  }

  /** Takes what is new; `whole` comes in place of all points that there were. */
  take({ whole, points, looks, stands, per_hour }) {
    if (whole) this.points = emptied(COLUMNS);
    append(this.points, points);
    append(this.looks, looks);
    this.stands = stands;
    this.perHour = per_hour ?? this.perHour;
    this.places = null;
  }

  /** Where each point stands on an axis: step, tokens, time (seconds of training) or cost. null where that is not known. */
  along(axis) {
    this.places ??= { step: this.points.step, tokens: this.points.tokens, time: spent(this.points) };
    if (axis !== "cost") return this.places[axis];
    return this.places.time.map((seconds) => (this.perHour == null ? null : (seconds / 3600) * this.perHour));
  }

  /** `{xs, ys}` of loss, validation, memory (the most so far) or speed. */
  line(name, axis, smoothed) {
    if (name === "validation") return this.validation(axis);
    const column = name === "memory" ? highest(this.points.memory) : this.points[name];
    const line = paired(this.along(axis), column);
    if (smoothed && name !== "memory") line.ys = smooth(line.ys);
    return line;
  }

  validation(axis) {
    const { step, loss } = this.looks;
    if (axis === "step") return paired(step, loss);
    const way = paired(this.points.step, this.along(axis));
    return paired(step.map((each) => (each <= 0 ? 0 : valueAt(way, Math.min(Math.max(each, way.xs[0]), way.xs.at(-1))))), loss);
  }
}

const emptied = (names) => Object.fromEntries(names.map((name) => [name, []]));

function append(columns, piece) {
  piece.step.forEach((step, place) => {
    const attempt = piece.attempt[place];
    if (attempt > (columns.attempt.at(-1) ?? attempt)) cut(columns, step);
    if (step <= (columns.step.at(-1) ?? -1)) return;
    for (const name of Object.keys(columns)) columns[name].push(piece[name]?.[place] ?? null);
  });
}

function cut(columns, step) {
  const keep = columns.step.findIndex((each) => each >= step);
  if (keep >= 0) for (const name of Object.keys(columns)) columns[name].length = keep;
}

/** Seconds of training since the first point; what lies between two attempts is not counted. */
function spent({ at, attempt }) {
  let sum = 0;
  return at.map((moment, place) => {
    if (place && attempt[place] === attempt[place - 1]) sum += Math.max(0, moment - at[place - 1]);
    return sum;
  });
}

function highest(values) {
  let most = null;
  return values.map((value) => (most = value === null ? most : Math.max(most ?? 0, value)));
}

/** Only where both are known, and each place once. */
function paired(places, values) {
  const line = { xs: [], ys: [] };
  places.forEach((x, place) => {
    if (x === null || !Number.isFinite(x) || values[place] === null || x <= (line.xs.at(-1) ?? -Infinity)) return;
    line.xs.push(x);
    line.ys.push(values[place]);
  });
  return line;
}

/** Exponential mean, corrected for its start; half of the weight lies on the last fiftieth of the points. */
function smooth(values) {
  const keep = 0.5 ** (1 / Math.max(2, values.length / 50));
  let [mean, weight] = [0, 0];
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

/** Between the points of a line, straight; null outside of it. */
function valueAt({ xs, ys }, x) {
  if (!xs.length || x < xs[0] || x > xs.at(-1)) return null;
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  const share = high === low ? 0 : (x - xs[low]) / (xs[high] - xs[low]);
  return ys[low] + share * (ys[high] - ys[low]);
}

/** The mean of the lines that reach a place; null where none does. */
export function meanAt(lines, x) {
  const there = lines.map((line) => valueAt(line, x)).filter((value) => value !== null);
  return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
}

/** The mean of an arm's lines as far as all of them reach; of one line, that line. */
export function meanLine(lines) {
  const begun = lines.filter(({ xs }) => xs.length);
  if (begun.length < 2) return begun[0] ?? { xs: [], ys: [] };
  const low = Math.max(...begun.map(({ xs }) => xs[0]));
  const high = Math.min(...begun.map(({ xs }) => xs.at(-1)));
  const there = [...new Set(begun.flatMap(({ xs }) => xs))].filter((x) => x >= low && x <= high).sort((a, b) => a - b);
  const every = Math.ceil(there.length / GRID) || 1;
  const xs = there.filter((_, place) => place % every === 0 || place === there.length - 1);
  return { xs, ys: xs.map((x) => begun.reduce((sum, line) => sum + valueAt(line, x), 0) / begun.length) };
}
