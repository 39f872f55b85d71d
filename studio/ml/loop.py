"""The one training loop: batches, schedule, steps, evaluations, samples, states, stop, resume. A plugin brings model and optimizer.

What is trained, and what the result looks like, is the plugin's; what is learnt from a row is the objective's. Several processes
run the same loop side by side (`studio.ml.world`): each reads its share of every batch, and the first one speaks and writes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from studio.checkpoints import best, states, step_of
from studio.errors import UserError
from studio.ml.batches import spread, step_batches
from studio.ml.checkpoints import RandomNumbers, load_optimizer_tensors, machine, optimizer_tensors, origin, refuse_other_origin
from studio.ml.device import Meter, peak_memory
from studio.ml.generating import answer
from studio.ml.loading import Arithmetic, choose_reader
from studio.ml.objectives import Judged, Part
from studio.ml.rows import objective_of, read_rows
from studio.ml.saving import Saver, State, Tensors, read_optimizer, read_weights
from studio.ml.watching import Watch, best_look, patience_is_over
from studio.ml.world import World
from studio.training import Job, Stopped, TrainConfig
from studio.training.memory import LOOKS, Estimator, changes, changes_in_words, estimate, fitting_changes, planned_steps

__all__ = ["Learner", "Loop", "Outcome", "learning_rate_factor", "read_rows"]

VALIDATION_ROWS = 512
"""More validation rows than this tell little more and take long; an even spread of them is used."""
SAMPLE_TOKENS = 48
SAMPLE_SECONDS, SAMPLE_SHARE = 30.0, 0.01
"""Answers to fixed prompts may take so many seconds, and this share of a run; looks at which they would take more go without."""
SHOWN_ROWS = 3
"""Of the first batch, and of the best and the worst validation rows."""
LOWER = 5
"""What a learning rate that diverged is divided by in the proposal to try again, which is never more than the usual one."""
MOST_SKIPPED = 20
"""Steps in a row that a loss scale may skip while it looks for its size."""


@dataclass(frozen=True)
class Learner:
    """What a plugin brings to the loop."""

    model: Any
    """A transformers causal model, or a peft model around one."""
    tokenizer: Any
    arithmetic: Arithmetic
    optimizer: torch.optim.Optimizer
    """Over the trained parameters; each group's learning rate is its highest."""
    weights: Callable[[], Tensors]
    """What is learnt, by name: the very tensors, or in a GPU's or several processes' case copies of them."""
    load_weights: Callable[[Tensors], None]
    """Puts such tensors back into the model, bit by bit."""
    estimate: Estimator = estimate
    """What other settings would take: what is proposed where the memory was too small."""

    @property
    def causal(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def optimizer_tensors(self) -> Tensors:
        return optimizer_tensors(self.optimizer)

    def load_optimizer_tensors(self, tensors: Tensors) -> None:
        load_optimizer_tensors(self.optimizer, tensors)

    def clip(self, limit: float) -> float:
        """Shortens the gradients to a norm of at most `limit`; returns the norm before."""
        return float(clip_grad_norm_(self.parameters, limit))


@dataclass
class Outcome:
    """What came of it."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent in steps; evaluations, samples and states not counted."""
    losses: list[float] = field(default_factory=list)
    validation_losses: dict[int, float] = field(default_factory=dict)
    stopped: bool = False
    kept: int = 0
    """The step whose weights are the result."""


@dataclass
class Sums:
    """What a step adds up over its batches, and over the processes."""

    loss: float = 0.0
    tokens: int = 0
    slots: int = 0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, part: Part, *, loss: float) -> None:
        self.loss += loss
        self.tokens += part.tokens
        self.slots += part.slots
        for name, (value, count) in part.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = (before[0] + value, before[1] + count)


def learning_rate_factor(step: int, *, total: int, warmup: float, scheduler: str) -> float:
    """Share of the highest learning rate at a step counted from 0. Rises over ceil(warmup · total) steps, then falls as chosen."""
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if scheduler == "constant":
        return 1.0
    gone = (step - rising) / max(1, total - rising)
    return 1.0 - gone if scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone))


class Loop:
    """One run of the loop. `run` does it; everything else is a part of a step."""

    def __init__(
        self, learner: Learner, config: TrainConfig, job: Job, *, train: list[Any], validation: list[Any], world: World | None = None
    ):
        self.learner, self.config, self.job, self.train = learner, config, job, train
        self.world = world or World()
        self.validation = [validation[number] for number in spread(len(validation), limit=VALIDATION_ROWS)]
        self.total = planned_steps(config, rows=len(train))
        self.evaluate_every = config.evaluate_every or math.ceil(self.total / LOOKS)
        self.save_every = config.save_every or self.evaluate_every
        self.keeps_best = config.keep == "best" or config.early_stopping > 0
        self.arithmetic = learner.arithmetic
        self.scaler = torch.amp.GradScaler(self.arithmetic.device.type, enabled=self.arithmetic.fp16)
        self.skipped = 0
        self.reader = choose_reader(learner.causal, arithmetic=self.arithmetic)
        self.objective = objective_of(job, self.reader, config, self.world)
        self.origin = origin(config, base=job.base, layout=self.reader.layout, rows=[*train, *validation])
        self.machine = machine(device=self.arithmetic.device, number_format=self.arithmetic.number_format, processes=self.world.size)
        self.outcome = Outcome()
        self.watch = Watch(self.total)
        self.meter = Meter(self.arithmetic.device)
        self.saver = Saver(job.checkpoints, saved=lambda step, folder: job.checkpoint(step=step, folder=folder))
        self.saved_at = self.looked_at = -1
        """Steps of the last state, and of the last look at the validation rows that was not cut short."""
        self.began_at, self.sampling = time.perf_counter(), 0.0
        """When this attempt began, and the seconds that its answers to fixed prompts took."""
        self.highest = [float(group["lr"]) for group in learner.optimizer.param_groups]
        if len(self.validation) < len(validation):
            job.note(f"{len(self.validation)} of {len(validation)} validation rows are looked at, evenly spread.")
        if self.reader.layout == "padded":
            job.note("This model family needs padded batches, which are slower than rows laid end to end.")

    def run(self) -> Outcome:
        """Trains until the last step, a stop, or the end of patience, from `job.resume` on where there is one.

        Raises Stopped at a pause and where nothing was learnt yet, UserError where loss or memory broke or the state is another run's.
        """
        try:
            outcome = self._train()
            self._keep_best()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                raise self._too_large() from error
            raise
        finally:
            self.saver.close()
        return outcome

    def _train(self) -> Outcome:
        self.learner.model.train()
        self.objective.prepare(self.learner.model, self.train, self.validation, job=self.job)
        if self.job.resume:
            self._take_up(self.job.resume)
        else:
            self._show_first_batch()
        if self._look_is_due():
            self._evaluate()
        self.job.phase("training", f"{self.total} steps")
        for batches in islice(self._batches(), self.outcome.steps, self.total):
            if self._stopping() or not self._step(batches):
                return self._stopped()
            self._after_step()
            if self._patience_is_over():
                break
        return self._stopped() if self._stopping() else self.outcome

    def _stopping(self) -> bool:
        return self.world.agree(self.job.stopping())

    def _take_up(self, folder: Path) -> None:
        """Everything as it was when the state was saved, so that the next step is the one that would have followed."""
        saved = json.loads((folder / "state.json").read_bytes())
        refuse_other_origin(saved["origin"], self.origin, step=saved["progress"]["steps"])
        if saved["machine"] != self.machine:
            was = ", ".join(f"{name} {value}" for name, value in saved["machine"].items() if value != self.machine.get(name))
            self.job.note(f"The steps before this were made with {was}. From here on, losses may differ in their last digits.")
        self.learner.load_weights(read_weights(folder))
        self.learner.load_optimizer_tensors(read_optimizer(folder))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["loss_scale"])
        looks = {int(step): loss for step, loss in saved["progress"].pop("validation_losses").items()}
        self.outcome = Outcome(**saved["progress"], validation_losses=looks)
        self.saved_at, self.looked_at = self.outcome.steps, saved["looked_at"]
        for loss in self.outcome.losses:
            self.watch.feed(loss)
        self.watch.said = set(saved["said"])
        self.meter.energy = saved["energy"]
        RandomNumbers.read(folder).restore()

    def _save(self) -> None:
        """A state of this very step, which is not saved twice."""
        step = self.outcome.steps
        if self.saved_at == step:
            return
        weights, optimizer = self.learner.weights(), self.learner.optimizer_tensors()  # several processes gather them together
        self.saved_at = step
        if not self.world.leads:
            return
        facts = {
            "progress": asdict(self.outcome),
            "looked_at": self.looked_at,
            "said": sorted(self.watch.said),
            "energy": self.meter.energy,
            "loss_scale": self.scaler.state_dict(),
            "origin": self.origin,
            "machine": self.machine,
        }
        loss = self.outcome.validation_losses.get(step)
        self.saver.save(State(step, weights, optimizer, RandomNumbers.now(), facts, loss))

    def _batches(self) -> Iterator[list[list[int]]]:
        return step_batches(
            [row.length for row in self.train],
            batch_size=self.config.batch_size,
            accumulation=self.config.gradient_accumulation,
            seed=self.config.seed,
            layout=self.reader.layout,
        )

    def _show_first_batch(self) -> None:
        first = next(self._batches())[0][:SHOWN_ROWS]
        self._show("first_batch", [(self.train[number], None) for number in first])

    def _show(self, name: Any, rows: list[tuple[Any, float | None]]) -> None:
        shown = [{"pieces": self.objective.pieces(row, self.learner.tokenizer), "loss": loss} for row, loss in rows]
        self.job.rows_shown(step=self.outcome.steps, name=name, rows=shown)

    def _step(self, batches: list[list[int]]) -> bool:
        """One step of the optimizer; False where a stop came in its middle, which leaves everything as it was before."""
        started, before = time.perf_counter(), RandomNumbers.now()
        weight = sum(self.objective.weight(self.train[number]) for batch in batches for number in batch)
        sums = Sums()
        for numbers in batches:
            if self._stopping():
                before.restore()  # dropout may have drawn already
                return False
            self._learn(numbers, weight, sums)
        self.scaler.unscale_(self.learner.optimizer)
        norm = self.learner.clip(self.config.max_grad_norm)
        self._add_up(sums)
        self._refuse_no_number(sums.loss, norm)
        rate = self._set_learning_rate()
        self.saver.before_change()
        self.scaler.step(self.learner.optimizer)
        self.scaler.update()
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._report(sums, norm=norm, rate=rate, rows=sum(map(len, batches)), seconds=time.perf_counter() - started)
        return True

    def _learn(self, numbers: list[int], weight: float, sums: Sums) -> None:
        """The gradients of this process's share of a batch. They are averaged over the processes, so each counts that many times."""
        mine = self.world.share(numbers)
        with self.arithmetic.autocast():
            part = self.objective.part([self.train[number] for number in mine or numbers[:1]])
            loss = part.loss / weight
        counted = 1 if mine else 0  # all must go through the model together, also where there is nothing to read
        self.scaler.scale(loss * (counted * self.world.size)).backward()  # type: ignore[no-untyped-call]
        if mine:
            sums.add(part, loss=loss.item())

    def _add_up(self, sums: Sums) -> None:
        names = sorted(sums.metrics)
        flat = [number for name in names for number in sums.metrics[name]]
        loss, tokens, slots, *flat = self.world.total(sums.loss, sums.tokens, sums.slots, *flat)
        sums.loss, sums.tokens, sums.slots = loss, int(tokens), int(slots)
        sums.metrics = {name: (flat[2 * place], flat[2 * place + 1]) for place, name in enumerate(names)}

    def _refuse_no_number(self, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise self._broken(f"The loss was no longer a number at step {self.outcome.steps + 1}")
        if math.isfinite(norm):
            self.skipped = 0
        elif not self.scaler.is_enabled() or self.skipped >= MOST_SKIPPED:
            raise self._broken(f"The gradient was no longer a number at step {self.outcome.steps + 1}")
        else:
            self.skipped += 1  # the scaler passes this step over and tries a smaller scale

    def _set_learning_rate(self) -> float:
        config = self.config
        factor = learning_rate_factor(self.outcome.steps, total=self.total, warmup=config.warmup, scheduler=config.scheduler)
        for group, highest in zip(self.learner.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = highest * factor
        return self.highest[0] * factor

    def _report(self, sums: Sums, *, norm: float, rate: float, rows: int, seconds: float) -> None:
        done = self.outcome
        done.steps += 1
        done.tokens += sums.tokens
        done.seconds += seconds
        done.losses.append(sums.loss)
        done.rows += rows
        done.kept = done.steps
        self.job.metric(
            step=done.steps,
            total=self.total,
            loss=sums.loss,
            learning_rate=rate,
            grad_norm=norm if math.isfinite(norm) else 0.0,
            tokens_per_second=sums.tokens / max(seconds, 1e-9),
            memory=self.world.memory(peak_memory(self.arithmetic.device)),
            padding=1.0 - sums.tokens / max(1, sums.slots),
            tokens=done.tokens,
            epoch=done.rows / len(self.train),
            **{name: value / count for name, (value, count) in sums.metrics.items() if count},
            **self.meter.read(),
        )
        self.job.progress(done.steps, self.total, "steps")
        self._watch(sums.loss)

    def _watch(self, loss: float) -> None:
        self.watch.feed(loss)
        if self.watch.exploded:
            raise self._broken(
                f"The loss exploded: it was {self.watch.smoothed:.3g} at step {self.outcome.steps}, after {self.watch.lowest:.3g}"
            )
        if said := self.watch.plateau():
            self.job.note(said)

    def _after_step(self) -> None:
        step = self.outcome.steps
        last = step == self.total
        if self._look_is_due():
            self._evaluate()
            if not last and not self._stopping():
                self.job.phase("training", f"{self.total} steps")
        better = self.keeps_best and self.looked_at == step and best_look(self.outcome.validation_losses)[0] == step
        if (better or (step % self.save_every == 0 and not last)) and not self._stopping():
            self._save()

    def _patience_is_over(self) -> bool:
        if self.outcome.steps == self.total or not patience_is_over(self.outcome.validation_losses, patience=self.config.early_stopping):
            return False
        step, loss = best_look(self.outcome.validation_losses)
        self.job.note(
            f"Ended early at step {self.outcome.steps}: the validation loss has not been below its {loss:.4f} of step {step} "
            f"for {self.config.early_stopping} looks."
        )
        return True

    def _keep_best(self) -> None:
        """The weights of the lowest validation loss as the result, where that was asked for and they are not the last ones anyway."""
        if not self.keeps_best:
            return
        self.saver.wait()
        self.world.agree(False)  # the others look once the first one has written
        found = best(states(self.job.checkpoints))
        if not found or step_of(found[0]) >= self.outcome.steps:
            return
        self.outcome.kept = step_of(found[0])
        self.learner.load_weights(read_weights(found[0]))
        self.job.note(f"The weights of step {self.outcome.kept} are kept: their validation loss was the lowest.")

    def _look_is_due(self) -> bool:
        step = self.outcome.steps
        return self.looked_at != step and (step % self.evaluate_every == 0 or step == self.total)

    def _evaluate(self) -> None:
        if not self.validation and not self.job.prompts:
            return
        self.job.phase("evaluating", "Looking at rows that are not trained on")
        step = self.outcome.steps
        with self._at_rest():
            if not self._judge() or not self._show_answers():
                return
        self.looked_at = step
        if said := self.watch.overfitting(self.outcome.validation_losses):
            self.job.note(said, level="warning")

    def _show_answers(self) -> bool:
        """The model's answers to the fixed prompts, where there is time for them; False where a stop came first."""
        step, started = self.outcome.steps, time.perf_counter()
        spare = SAMPLE_SECONDS + SAMPLE_SHARE * (started - self.began_at) - self.sampling
        if not self.world.agree(self.world.leads and (spare > 0 or step == self.total)):
            return True
        for prompt in self.job.prompts:
            said = answer(
                self.learner.causal, self.learner.tokenizer, [{"role": "user", "content": prompt}], SAMPLE_TOKENS, stopping=self._stopping
            )
            if self._stopping():
                return False
            self.job.sample(step=step, prompt=prompt, answer=said)
        self.sampling += time.perf_counter() - started
        return True

    def _judge(self) -> bool:
        """The validation loss, and the rows that are answered best and worst; False where a stop came first."""
        mine = self.world.share(range(len(self.validation)))
        judged: list[Judged] = []
        size = self.config.batch_size
        longest = math.ceil(len(self.validation) / self.world.size)
        for start in range(0, longest, size):
            if self._stopping():
                return False
            rows = [self.validation[number] for number in mine[start : start + size]]
            judged += self.objective.judge(rows or self.validation[:1])[: len(rows)]
            self.job.progress(min(start + size, longest) * self.world.size, longest * self.world.size, "rows")
        if not self.validation:
            return True
        self._report_judged(judged)
        self._show_extremes(mine, judged)
        return True

    def _report_judged(self, judged: list[Judged]) -> None:
        step = self.outcome.steps
        names = sorted({name for each in judged for name in each.metrics})
        sums = [sum(each.metrics.get(name, 0.0) for each in judged) for name in names]
        loss, weight, count, *sums = self.world.total(
            sum(each.loss for each in judged), sum(each.weight for each in judged), len(judged), *sums
        )
        if not math.isfinite(loss):
            raise self._broken(f"The validation loss was no longer a number at step {step}")
        if weight:
            self.outcome.validation_losses[step] = loss / weight
            extra = {f"validation_{name}": value / count for name, value in zip(names, sums, strict=True)}
            self.job.metric(step=step, total=self.total, validation_loss=loss / weight, **extra)

    def _show_extremes(self, mine: list[int], judged: list[Judged]) -> None:
        """The rows with the lowest and the highest mean loss."""
        means = [each.loss / each.weight if each.weight else math.nan for each in judged]
        numbers, means = [int(number) for number in self.world.gather(list(map(float, mine)))], self.world.gather(means)
        ranked = sorted((loss, number) for loss, number in zip(means, numbers, strict=True) if math.isfinite(loss))
        if len(ranked) >= 2:
            self._show("best", [(self.validation[number], loss) for loss, number in ranked[:SHOWN_ROWS]])
            self._show("worst", [(self.validation[number], loss) for loss, number in reversed(ranked[-SHOWN_ROWS:])])

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """No dropout, no gradients, the same number format as in training."""
        self.learner.model.eval()
        with torch.no_grad(), self.arithmetic.autocast():
            yield
        self.learner.model.train()

    def _stopped(self) -> Outcome:
        self.learner.optimizer.zero_grad(set_to_none=True)
        if self.outcome.steps == 0:
            raise Stopped
        if self.world.agree(self.job.pausing()):
            self.job.phase("saving", "Saving the state to go on from")
            self._save()
            raise Stopped
        self.outcome.stopped = True
        return self.outcome

    def _broken(self, what: str) -> UserError:
        self.saver.wait()
        there = states(self.job.checkpoints)
        kept = f"The checkpoint of step {step_of(there[-1])} is kept." if there else "There was no checkpoint yet."
        usual = type(self.config).model_fields["learning_rate"].default
        lower = float(f"{min(self.config.learning_rate / LOWER, usual):.1g}")
        return UserError(
            f"{what}: the learning rate of {self.config.learning_rate:g} is probably too high for these rows. {kept} "
            f"Try again with {lower:g}.",
            fields={"learning_rate": f"Try {lower:g}."},
            code="diverged",
            facts={"code": "diverged", "step": self.outcome.steps + 1, "proposal": {"learning_rate": lower}},
        )

    def _too_large(self) -> UserError:
        config, job, step = self.config, self.job, self.outcome.steps + 1
        fitting = fitting_changes(self.learner.estimate, config, job.model, job.data, job.host, ran_out=True)
        facts: dict[str, Any] = {"code": "out_of_memory", "step": step}
        if fitting is None:
            todo, changed = "Choose a smaller base model, or a worker with more memory.", {}
        else:
            todo, changed = f"Try again with {changes_in_words(config, fitting)}.", changes(config, fitting)
            facts["proposal"] = changed
        return UserError(
            f"The worker ran out of memory at step {step}. {todo}",
            fields=dict.fromkeys(changed, "Too much for this worker's memory."),
            code="out_of_memory",
            facts=facts,
        )


def out_of_memory(error: BaseException) -> bool:
    """torch has a type for a GPU that is full; for main memory it raises a RuntimeError with words of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
