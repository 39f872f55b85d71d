// Answers to the fixed prompts by step: a slider scrubs them, the charts' cursor peeks at them, the newest show by themselves.
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
    this.range.hidden = this.bySteps.size < 2; // nothing to choose from yet
    if (this.following) this.chosen = this.steps.at(-1);
    this.draw(this.chosen);
  }

  /** What it answered at a step of the charts; null goes back to what was chosen. */
  peek(step) {
    if (!this.box || !this.bySteps.size) return;
    this.draw(step === null ? this.chosen : (this.steps.findLast((each) => each <= step) ?? this.steps[0]));
  }

  draw(step) {
    if (!this.bySteps.has(step)) return;
    this.range.value = this.steps.indexOf(step);
    const words = step === 0 ? "before training" : `step ${step.toLocaleString("en")}`;
    this.box.querySelector("[data-scrub-text]").textContent = words;
    this.range.setAttribute("aria-valuetext", words);
    this.box.querySelector("[data-sample-list]").replaceChildren(...[...this.bySteps.get(step)].map(([prompt, answer]) => sample(prompt, answer)));
  }
}

function sample(prompt, answer) {
  const box = document.createElement("div");
  box.className = "sample";
  for (const [name, text] of [["prompt", prompt], ["answer", answer]]) {
    const line = document.createElement("p");
    line.className = name;
    line.textContent = text;
    box.append(line);
  }
  return box;
}
