// A run page while it lives: takes the stored events from #run-events, then each new one from the socket, once and in order.
// <div data-run data-run-id data-after data-live>; its methods phase, progress, metric, ... take the events of that type. Parts that the page has are filled, others are passed over.
import { mountCharts } from "./charts.js";
import { icon, make } from "./dom.js";
import { bytes, count, figure, share } from "./format.js";
import { followLog } from "./log.js";
import { Rows } from "./rows.js";
import { Samples } from "./samples.js";
import { Steps } from "./steps.js";
import { span } from "./times.js";
import { setMeter } from "./widths.js";

const PARTS = ["#live", "#outcome"]; // what the server draws again
const LIVE = ["queued", "starting", "running", "finishing", "pausing", "recovering"];
const PHASES = {
  preparing: "Preparing", reading: "Reading the rows", loading: "Loading the model", tokenizing: "Counting tokens", training: "Training",
  evaluating: "Looking at the validation rows", saving: "Saving", downloading: "Downloading", converting: "Converting", checking: "Checking",
};
const WINDOW = 30; // reports over which the speed is taken

class RunPage {
  constructor(root) {
    this.root = root;
    this.seq = Number(root.dataset.after || 0);
    this.live = root.dataset.live === "true";
    this.latest = {};
    this.pace = [];
    const charts = root.querySelector("[data-charts]");
    this.samples = new Samples(root.querySelector("[data-run-samples]"), (step) => this.charts?.showStep(step));
    this.charts = charts && mountCharts(charts, { onCursor: (step) => this.samples.peek(step) });
    this.shownRows = new Rows(root.querySelector("[data-run-rows]"));
    this.steps = new Steps(this.charts && root.querySelector("[data-steps]"), this.charts?.series);
  }

  start() {
    const stored = document.getElementById("run-events");
    this.take(stored ? JSON.parse(stored.textContent) : []);
    followLog(this.root.querySelector("[data-log]"), () => this.live);
    if (!this.live) return;
    this.listen();
    setInterval(() => this.tick(), 1000);
  }

  /** Through htmx's socket extension; a frame is an event, never markup, so htmx is kept from swapping it. */
  listen() {
    const { root } = this;
    window.__latency = [];
    const opened = Date.now();
    root.addEventListener("htmx:ws:before:message:incoming", (event) => {
      event.preventDefault();
      const { connection, message } = event.detail;
      const told = JSON.parse(message.data);
      if (told.seq <= this.seq) return;
      const at = Date.parse(told.at);
      if (at > opened) window.__latency.push(Date.now() - at);
      this.seq = told.seq;
      const url = new URL(connection.url);
      url.searchParams.set("after", told.seq); // where a new connection goes on
      connection.url = url.href;
      this.take([told]);
      connection.config.reconnect = told.type !== "end"; // a run that gave way goes on after its end
    });
    root.addEventListener("htmx:ws:close", () => this.showLink(false));
    root.addEventListener("htmx:ws:after:connection", () => this.showLink(true));
    root.setAttribute("hx-ws:connect", `/ws/runs/${root.dataset.runId}/?after=${this.seq}`);
    window.htmx.process(root);
  }

  take(events) {
    for (const event of events) {
      if (this.ended && event.type !== "end") this.goOn();
      this[event.type]?.(event);
    }
    this.samples.append(events);
    this.shownRows.append(events);
    this.charts?.append(events);
    this.steps.append(events);
    this.show();
  }

  phase({ name, text }) {
    this.now = { name, text };
    this.share = null;
    this.refresh();
  }

  progress({ done, total, unit }) {
    this.share = total ? done / total : null;
    this.done = { done, total, unit };
  }

  metric(event) {
    const { step, total, at, attempt } = event;
    if (this.pace.length && this.pace[0].attempt !== attempt) this.pace = [];
    this.pace.push({ step, at: Date.parse(at), attempt });
    if (this.pace.length > WINDOW) this.pace.shift();
    for (const [name, value] of Object.entries(event)) if (Number.isFinite(value)) this.latest[name] = value;
    this.root.querySelector("[data-run-figures]")?.removeAttribute("hidden");
    this.peak = Math.max(this.peak ?? 0, event.memory ?? 0);
    this.reached = { step, total };
    if (Number.isFinite(event.validation_loss)) this.mark("evaluation", step, total);
  }

  checkpoint({ step }) {
    this.mark("checkpoint", step, this.reached?.total);
  }

  note({ text, level, at }) {
    const list = this.root.querySelector("[data-run-notes]");
    if (!list || [...list.querySelectorAll(".words")].some((words) => words.textContent === text)) return; // another attempt says it again
    const item = make("li", level === "warning" ? "warning" : "info");
    const words = make("span", "words", text);
    const time = make("time");
    time.dateTime = at;
    time.textContent = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    item.append(icon(level === "warning" ? "warning" : "info"), words, time);
    list.append(item);
    list.closest("[data-run-notes-box]")?.removeAttribute("hidden");
  }

  end({ status, at }) {
    this.live = false;
    this.ended = { status, at: Date.parse(at) };
    this.refreshUntilSettled();
  }

  /** Something came after the end: the run was resumed. */
  goOn() {
    this.ended = this.now = null;
    this.live = true;
    this.bar?.querySelector("progress")?.closest(".progress").classList.remove("danger", "muted");
  }

  /** Lets the server draw what it alone knows: the status, the buttons, what to do next. */
  refresh() {
    if (!this.live) return;
    clearTimeout(this.refreshing);
    this.refreshing = setTimeout(redraw, 200);
  }

  /** Each part is a request of its own, so one may have been drawn before the server had settled and the other after. */
  refreshUntilSettled() {
    if (!this.ended || !PARTS.some((part) => LIVE.includes(document.querySelector(part)?.dataset.status))) return;
    redraw();
    setTimeout(() => this.refreshUntilSettled(), 1000);
  }

  tick() {
    if (!this.live) return;
    this.show();
    this.ticks = (this.ticks ?? 0) + 1;
    if (!this.now && this.ticks % 5 === 0) window.htmx?.trigger("#live", "refresh"); // its place in the queue moves
  }

  /** Seconds left by the pace of the last reports, counted down between them. */
  get left() {
    const [first] = this.pace;
    const last = this.pace.at(-1);
    if (!last || last.step === first.step || !this.reached?.total) return null;
    const each = this.stepTime();
    const since = Math.min(Date.now() - last.at, each * 20); // a worker that is silent for long gets no nearer to its end
    return Math.max(0, (each * (this.reached.total - last.step) - since) / 1000);
  }

  /** Milliseconds a step takes, by the last reports; a gap, such as a pause of the machine, counts as ten usual ones at most. */
  stepTime() {
    const spans = this.pace.slice(1).map(({ at }, before) => at - this.pace[before].at);
    const usual = spans.toSorted((a, b) => a - b)[spans.length >> 1];
    const sum = spans.reduce((total, each) => total + Math.min(each, 10 * usual), 0);
    return sum / (this.pace.at(-1).step - this.pace[0].step);
  }

  show() {
    this.write("[data-run-sentence]", this.sentence());
    this.showProgress();
    const { latest } = this;
    const stats = {
      step: this.reached && `${count(this.reached.step)} / ${count(this.reached.total)}`, loss: figure(latest.loss), validation_loss: figure(latest.validation_loss),
      learning_rate: figure(latest.learning_rate), grad_norm: figure(latest.grad_norm), tokens_per_second: count(latest.tokens_per_second),
      padding: share(latest.padding), utilisation: latest.utilisation == null ? "–" : share(latest.utilisation / 100),
      power: latest.power == null ? "–" : `${count(latest.power)} W`, accuracy: share(latest.validation_accuracy ?? latest.accuracy), tokens: count(latest.tokens), epoch: latest.epoch == null ? "–" : latest.epoch.toFixed(2), memory: bytes(this.peak || null),
      time: this.live ? (this.left === null ? "–" : span(this.left)) : (this.took ?? "–"), took: this.took ?? "–", done: this.reached && count(this.reached.step),
    };
    this.root.querySelector('[data-run-stat="time"]')?.closest(".stat").querySelector("dt").replaceChildren(this.live ? "Time left" : "Took");
    for (const place of this.root.querySelectorAll("[data-run-stat]")) {
      const text = stats[place.dataset.runStat] ?? "–";
      if (place.textContent !== text) place.textContent = text;
      const exact = latest[place.dataset.runStat];
      if (exact == null) continue;
      place.title = exact;
      if (exact) place.closest(".stat")?.removeAttribute("hidden"); // of what not every device or run tells
    }
    this.showMemory();
  }

  /** How long it has worked, in words. */
  get took() {
    const { started, worked } = document.getElementById("live")?.dataset ?? {};
    const since = Date.parse(started);
    return since ? span(((this.ended?.at ?? Date.now()) - since) / 1000 + Number(worked || 0)) : null;
  }

  sentence() {
    const { latest, reached: steps, now } = this;
    const loss = latest.loss == null ? "" : `loss ${figure(latest.loss)}`;
    if (this.ended) {
      const where = steps ? ` at step ${count(steps.step)} of ${count(steps.total)}` : "";
      const took = this.took ? ` in ${this.took}` : "";
      const validation = latest.validation_loss == null ? "" : `validation loss ${figure(latest.validation_loss)}`;
      if (this.ended.status === "succeeded") return join(`Done${took}`, steps && `${count(steps.step)} steps`, loss, validation);
      const after = this.took && steps ? `after ${this.took}` : "";
      if (this.ended.status === "paused") return join(`Paused${where}`, after, loss, validation);
      return this.ended.status === "stopped" ? join(`Stopped${where}`, after, loss, validation) : join(`Failed${where}`, after);
    }
    if (!now) return document.getElementById("live")?.dataset.waiting;
    const part = this.share === null || this.share === undefined ? "" : `${Math.round(this.share * 100)} %`;
    if (!steps || (now.name !== "training" && now.name !== "evaluating")) return join(now.text || PHASES[now.name], part);
    const trend = this.charts?.series.trend();
    const left = this.left === null ? "" : `${span(this.left)}\u00a0left`;
    return join(`Step ${count(steps.step)} of ${count(steps.total)}`, now.name === "evaluating" ? "looking at the validation rows" : left, trend ? `${loss}, ${trend}` : loss);
  }

  get bar() {
    return this.root.querySelector("[data-run-progress] .progress-track, .run-head .progress-track");
  }

  showProgress() {
    const bar = this.bar?.querySelector("progress");
    if (!bar) return;
    const share = this.ended?.status === "succeeded" ? 1 : this.reached ? this.reached.step / this.reached.total : this.share;
    if (share == null) {
      if (this.live && this.now) bar.removeAttribute("value");
    } else bar.value = share;
    const tone = { succeeded: "success", failed: "danger", stopped: "muted", paused: "muted" }[this.ended?.status];
    if (tone) bar.closest(".progress").classList.add(tone);
  }

  mark(kind, step, total) {
    if (!this.bar || !total) return;
    const mark = make("span", `progress-mark ${kind}`);
    mark.title = `${kind === "checkpoint" ? "Checkpoint" : "Evaluation"} at step ${count(step)}`;
    mark.style.left = `${(step / total) * 100}%`;
    this.bar.append(mark);
  }

  showMemory() {
    const meter = this.root.querySelector("[data-run-memory]");
    if (!meter || !this.peak) return;
    meter.dataset.peak = this.peak;
    setMeter(meter);
    this.write("[data-run-memory-text]", `${bytes(this.peak)} at the peak`);
  }

  showLink(joined) {
    const place = this.root.querySelector("[data-run-link]");
    if (place) place.hidden = joined || !this.live;
  }

  write(selector, text) {
    const place = this.root.querySelector(selector);
    if (place && text && place.textContent !== text) place.textContent = text;
  }
}

/** Lets the server draw the parts that it alone knows. */
function redraw() {
  for (const part of PARTS) window.htmx?.trigger(part, "refresh");
}

const join = (...parts) => parts.filter(Boolean).join("\u00a0· ");

for (const root of document.querySelectorAll("[data-run]")) new RunPage(root).start();
