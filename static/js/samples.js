// Answers to the fixed prompts, the first beside those of a chosen step: a slider scrubs them, the charts' cursor peeks at them, the newest show
// by themselves.
import { make } from "./dom.js";
import { count } from "./format.js";

export class Samples {
  constructor(box, onScrub) {
    this.box = box;
    this.bySteps = new Map();
    this.following = true;
    if (!box) return;
    this.range = box.querySelector("[data-scrub]");
    this.range.addEventListener("input", () => {
      this.chosen = this.steps[this.range.value];
      this.following = this.chosen === this.steps.at(-1);
      this.draw(this.chosen);
      onScrub(this.chosen);
    });
    this.range.addEventListener("blur", () => onScrub(null));
  }

  get steps() {
    return [...this.bySteps.keys()];
  }

  append(events) {
    const samples = events.filter((event) => event.type === "sample");
    if (!this.box || !samples.length) return;
    for (const { step, prompt, answer } of samples) {
      if (!this.bySteps.has(step)) this.bySteps.set(step, new Map());
      this.bySteps.get(step).set(prompt, answer);
    }
    this.bySteps = new Map([...this.bySteps].sort(([a], [b]) => a - b));
    this.box.hidden = false;
    this.range.max = this.bySteps.size - 1;
    this.range.closest(".scrub").hidden = this.bySteps.size < 2; // nothing to choose from yet
    if (this.following) this.chosen = this.steps.at(-1);
    this.draw(this.chosen);
  }

  /** What it answered at a step of the charts; null goes back to what was chosen. */
  peek(step) {
    if (!this.box || !this.bySteps.size) return;
    this.draw(step === null ? this.chosen : (this.steps.findLast((each) => each <= step) ?? this.steps[0]));
  }

  draw(step) {
    const answers = this.bySteps.get(step);
    if (!answers) return;
    this.range.value = this.steps.indexOf(step);
    this.box.querySelector("[data-scrub-text]").textContent = named(step);
    this.range.setAttribute("aria-valuetext", named(step));
    const first = this.steps[0];
    const compared = [...answers].map(([prompt, answer]) => sample(prompt, first === step ? [[first, answer]] : [[first, this.bySteps.get(first).get(prompt)], [step, answer]]));
    this.box.querySelector("[data-sample-list]").replaceChildren(...compared);
  }
}

const named = (step) => (step === 0 ? "before training" : `step ${count(step)}`);

/** A prompt with its answers by step; one that has not changed since the first says so. */
function sample(prompt, answers) {
  const box = make("div", "sample");
  const row = make("div", "sample-answers");
  box.append(make("p", "prompt", prompt), row);
  const [[, before]] = answers;
  for (const [step, answer] of answers) {
    const one = make("div");
    const same = answers.length > 1 && step !== answers[0][0] && answer === before;
    one.append(make("h3", "when", `${named(step)[0].toUpperCase()}${named(step).slice(1)}${same ? " · unchanged" : ""}`), answer === undefined ? make("p", "muted", "Not asked then.") : make("p", "answer", answer));
    row.append(one);
  }
  return box;
}
