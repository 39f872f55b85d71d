// The living page: drawn-up figures of a run, so that the charts, the answers, the rows and the steps show without one.
import { mountCharts } from "./charts.js";
import { Rows } from "./rows.js";
import { Samples } from "./samples.js";
import { Steps } from "./steps.js";

const STEPS = 400;
const PAUSED = 210;
const PIECES = [["<|im_start|>user\nWhere is my order?<|im_end|>\n<|im_start|>assistant\n", false], ["Send me the order number and I will look.<|im_end|>", true], ["\n", false]];

function drawnUp() {
  const events = [];
  const wobble = (step, size) => Math.sin(step * 12.9898) * Math.cos(step * 78.233) * size;
  for (let step = 1; step <= STEPS; step += 1) {
    const loss = 1.35 + 1.3 * Math.exp(-step / 90) + wobble(step, 0.16);
    const event = { type: "metric", attempt: step > PAUSED ? 2 : 1, step, total: 600, loss, grad_norm: 0.9 + Math.exp(-step / 40) + Math.abs(wobble(step + 7, 0.5)),
      learning_rate: step < 30 ? (2e-4 * step) / 30 : 1e-4 * (1 + Math.cos((Math.PI * (step - 30)) / 570)), tokens_per_second: 1180 + wobble(step + 3, 60), memory: 1.9e9,
      padding: 0.08 + wobble(step + 5, 0.02), utilisation: 91 + wobble(step + 2, 6), epoch: step / 200 };
    if (step % 60 === 0) event.validation_loss = 1.42 + 1.2 * Math.exp(-step / 90);
    events.push(event);
    if (step % 120 === 0) events.push({ type: "checkpoint", attempt: event.attempt, step });
    if (step === PAUSED) events.push({ type: "end", status: "paused" });
    if (step % 60 === 0) events.push({ type: "sample", step, prompt: "Where is my order?", answer: `At step ${step} it answered: send me the order number and I will look.` });
  }
  for (const [name, loss] of [["first_batch", null], ["best", 0.21], ["worst", 4.9]]) events.push({ type: "rows", name, step: STEPS, rows: [{ pieces: PIECES, loss }] });
  return events;
}

let charts = null;
const samples = new Samples(document.querySelector("[data-run-samples]"), (step) => charts.showStep(step));
charts = mountCharts(document.querySelector("[data-design-charts]"), { onCursor: (step) => samples.peek(step) });
const events = drawnUp();
charts.append(events);
samples.append(events);
new Rows(document.querySelector("[data-run-rows]")).append(events);
new Steps(document.querySelector("[data-steps]"), charts.series).append(events);
document.querySelector("[data-design-form]").addEventListener("submit", (event) => event.preventDefault());
