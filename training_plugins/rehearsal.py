"""A training that only pretends: it reads the rows, waits, and reports as a real one does. For trying the studio, and as the example."""

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from studio.checkpoints import save_state
from studio.training import (
    DatasetFacts,
    Estimate,
    HostFacts,
    Issue,
    Job,
    Memory,
    ModelFacts,
    Span,
    Stopped,
    TrainConfig,
    TrainingPlugin,
    setting,
)
from studio.training.measuring import peak_memory
from studio.training.memory import LOOKS, planned_steps

INTERPRETER = 80_000_000  # bytes that a Python process with the worker in it takes
RESULT = 10_000  # bytes of rehearsal.json and of each checkpoint, at most
START, FLOOR = 3.2, 0.9  # nats per token: about where a small model begins and ends on support answers


class Rehearsal(TrainingPlugin):
    """Goes through a run without a model: every step waits a moment and reports a loss that falls.

    Takes a minute where a training takes hours, so it shows whether rows, queue, charts and storage work.
    """

    name = "rehearsal"
    title = "Rehearsal (no model)"
    method = "none"
    resumes = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "Ten seconds": {"max_steps": 100, "seconds_per_step": 0.1},
        "Fails half-way": {"max_steps": 100, "fail_at": 50},
    }

    class Config(TrainConfig):
        seconds_per_step: float = setting(0.05, label="Seconds per step", unit="s", ge=0, le=60)
        """How long each step waits."""
        fail_at: int = setting(0, label="Fail at step", advanced=True, ge=0, le=10_000_000)
        """Breaks off with an error at this step, to see what a failed run looks like; 0 never does."""

    def check(self, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> list[Issue]:
        issues = [Issue(level="note", message="Nothing is learnt: a rehearsal only shows what a run looks like.")]
        if data.train == 0:
            issues.append(Issue(level="error", message="The dataset has no training rows. Choose one that has some."))
        if config.fail_at:
            issues.append(Issue(level="warning", field="fail_at", message=f"The run will fail at step {config.fail_at}, as asked."))
        return issues

    def estimate(self, config: Any, base: ModelFacts, data: DatasetFacts, host: HostFacts) -> Estimate:
        steps = planned_steps(config, rows=data.train)
        waiting = steps * config.seconds_per_step
        nothing = dict.fromkeys(("weights", "adapter", "gradients", "optimizer", "activations", "logits"), 0)
        return Estimate(
            memory=Memory(**nothing, overhead=INTERPRETER, low=INTERPRETER // 2, high=INTERPRETER * 3),
            trainable_parameters=0,
            steps=steps,
            seconds=Span(low=waiting + 0.2, high=waiting * 1.1 + steps * 0.01 + 10),
            disk=RESULT * (2 + steps // interval(config.save_every, steps)),
            available=host.memory,
            reasons=["No model is loaded: only the interpreter takes memory."],
        )

    def train(self, config: Any, job: Job) -> Path:
        job.phase("tokenizing", "Counting words")
        words = [len(json.dumps(row).split()) for row in stoppable(job, job.rows("train"))]
        steps = planned_steps(config, rows=len(words))
        job.phase("training", f"{steps} steps")
        done = rehearse(config, job, words=words, steps=steps)
        job.phase("saving")
        facts = {"steps": done, "planned": steps, "rows": len(words), "loss": smooth_loss(done, steps)}
        (job.out / "rehearsal.json").write_text(json.dumps(facts, indent=1))
        return job.out


def rehearse(config: Any, job: Job, *, words: list[int], steps: int) -> int:
    """Goes through the steps that are left until the last one, or a stop; returns how many were made in all attempts."""
    chance = random.Random(config.seed)
    first, tokens = take_up(job.resume, chance) if job.resume else (1, 0)
    evaluate_every = interval(config.evaluate_every, steps)
    save_every = interval(config.save_every, steps, otherwise=evaluate_every)
    rows_per_step = config.batch_size * config.gradient_accumulation
    for step in range(first, steps + 1):
        started = time.monotonic()
        if not wait(config.seconds_per_step, job):
            if job.pausing():
                save(job, step=step - 1, tokens=tokens, chance=chance)
                raise Stopped
            return step - 1
        if step == config.fail_at:
            raise RuntimeError(f"Step {step} failed, as the settings asked.")
        read = sum(words[(step * rows_per_step + place) % len(words)] for place in range(rows_per_step)) if words else 0
        tokens += read
        job.metric(
            step=step,
            total=steps,
            loss=smooth_loss(step, steps) * chance.gauss(1, 0.04),
            learning_rate=learning_rate(config, step=step, steps=steps),
            grad_norm=abs(chance.gauss(0.8, 0.2)) + 0.2,
            tokens_per_second=read / max(1e-6, time.monotonic() - started),
            tokens=tokens,
            epoch=step * rows_per_step / max(1, len(words)),
            memory=peak_memory(),
        )
        job.progress(step, steps, "steps")
        looked = evaluate(job, step=step, steps=steps, chance=chance) if step % evaluate_every == 0 or step == steps else None
        if step % save_every == 0 or step == steps:
            save(job, step=step, tokens=tokens, chance=chance, validation_loss=looked)
    return steps


def evaluate(job: Job, *, step: int, steps: int, chance: random.Random) -> float:
    """Reports and returns the validation loss."""
    loss = smooth_loss(step, steps) * chance.gauss(1.05, 0.01)
    job.metric(step=step, total=steps, validation_loss=loss)
    for prompt in job.prompts:
        job.sample(step=step, prompt=prompt, answer=f"A rehearsed answer after {step} of {steps} steps.")
    return loss


def save(job: Job, *, step: int, tokens: int, chance: random.Random, validation_loss: float | None = None) -> None:
    """Everything that the next step needs: where it is, what was read, and how chance goes on."""
    state = {"step": step, "tokens": tokens, "chance": chance.getstate()}

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(state))

    job.checkpoint(step=step, folder=save_state(job.checkpoints, step=step, write=write, validation_loss=validation_loss))


def take_up(state: Path, chance: random.Random) -> tuple[int, int]:
    """Lets chance go on where the state left it; returns the next step and the tokens read so far."""
    saved = json.loads((state / "state.json").read_bytes())
    version, numbers, rest = saved["chance"]
    chance.setstate((version, tuple(numbers), rest))
    return saved["step"] + 1, saved["tokens"]


def wait(seconds: float, job: Job) -> bool:
    """Waits as long as a step takes, looking for a stop ten times a second; False once one was asked for."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if job.stopping():
            return False
        time.sleep(min(0.1, left))
    return not job.stopping()


def stoppable(job: Job, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        job.raise_if_stopped()
        yield row


def interval(asked: int, steps: int, *, otherwise: int = 0) -> int:
    """Steps between two looks: as asked, or about ten in a run."""
    return asked or otherwise or max(1, steps // LOOKS)


def smooth_loss(step: int, steps: int) -> float:
    return FLOOR + (START - FLOOR) * math.exp(-4 * step / steps)


def learning_rate(config: Any, *, step: int, steps: int) -> float:
    """Rises over the warm-up steps, then falls as the schedule says."""
    rising = int(config.warmup * steps)
    if step <= rising:
        return float(config.learning_rate * step / rising)
    share = (step - rising) / max(1, steps - rising)
    falls = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
    return float(config.learning_rate * falls[config.scheduler])
