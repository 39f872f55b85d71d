"""The one training loop: batches, schedule, steps, evaluations, samples, checkpoints, stop, resume. A plugin brings model and optimizer.

What is trained, and what the result looks like, is the plugin's; the loop knows neither adapters nor files.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch.nn.utils import clip_grad_norm_

from studio.checkpoints import save_state, states, step_of
from studio.errors import UserError
from studio.ml.batches import TokenRow, spread, step_batches, token_row
from studio.ml.checkpoints import RandomNumbers, machine, origin, read_optimizer, refuse_other_origin, write_optimizer
from studio.ml.generating import answer
from studio.ml.loading import Arithmetic, choose_reader
from studio.ml.loss import summed_loss
from studio.ml.tokens import encode_rows
from studio.training import Job, Stopped, TrainConfig
from studio.training.memory import LOOKS, planned_steps

VALIDATION_ROWS = 512
"""More validation rows than this tell little more and take long; an even spread of them is used."""
SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class Learner:
    """What a plugin brings to the loop."""

    model: Any
    """A transformers causal model, or a peft model around one."""
    tokenizer: Any
    arithmetic: Arithmetic
    optimizer: torch.optim.Optimizer
    """Over the trained parameters; each group's learning rate is its highest."""
    save_weights: Callable[[Path], None]
    """Writes what was learnt into a folder, as safetensors and JSON."""
    load_weights: Callable[[Path], None]
    """Reads back into the model what `save_weights` wrote, bit by bit."""

    @property
    def causal(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass
class Outcome:
    """What came of it."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent in steps; evaluations, samples and checkpoints not counted."""
    losses: list[float] = field(default_factory=list)
    validation_losses: dict[int, float] = field(default_factory=dict)
    stopped: bool = False


def read_rows(job: Job, tokenizer: Any, *, max_length: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Training and validation rows as tokens. Rows without anything to learn are left out and named in a note."""
    job.phase("tokenizing", "Reading the rows as tokens")
    total = job.data.train + job.data.validation
    kept: dict[str, list[TokenRow]] = {"train": [], "validation": []}
    done = cut = empty = 0
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for split in splits:
        for encoded in encode_rows(tokenizer, job.rows(split), max_length=max_length):
            job.raise_if_stopped()
            if encoded.teaches:
                kept[split].append(token_row(encoded.ids, encoded.supervised))
            cut += encoded.cut
            empty += not encoded.teaches
            done += 1
            job.progress(done, total, "rows")
    if cut:
        job.note(f"{cut} of {done} rows were longer than {max_length} tokens and were cut.")
    if empty:
        job.note(f"{empty} of {done} rows were left out: nothing in them is to be learnt.", level="warning")
    if not kept["train"]:
        raise UserError(
            f"No training row has anything to learn within {max_length} tokens. Raise the max length.", fields={"max_length": "Too short."}
        )
    return kept["train"], kept["validation"]


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

    def __init__(self, learner: Learner, config: TrainConfig, job: Job, *, train: list[TokenRow], validation: list[TokenRow]):
        self.learner, self.config, self.job, self.train = learner, config, job, train
        self.validation = [validation[number] for number in spread(len(validation), limit=VALIDATION_ROWS)]
        self.total = planned_steps(config, rows=len(train))
        self.evaluate_every = config.evaluate_every or math.ceil(self.total / LOOKS)
        self.save_every = config.save_every or self.evaluate_every
        self.arithmetic = learner.arithmetic
        self.reader = choose_reader(learner.causal, arithmetic=self.arithmetic)
        self.origin = origin(config, base=job.base, layout=self.reader.layout, rows=[*train, *validation])
        self.machine = machine(device=self.arithmetic.device, bf16=self.arithmetic.bf16)
        self.outcome = Outcome()
        self.saved_at = self.looked_at = -1
        """Steps of the last state, and of the last look at the validation rows that was not cut short."""
        self.highest = [float(group["lr"]) for group in learner.optimizer.param_groups]
        if len(self.validation) < len(validation):
            job.note(f"{len(self.validation)} of {len(validation)} validation rows are looked at, evenly spread.")
        if self.reader.layout == "padded":
            job.note("This model family needs padded batches, which are slower than rows laid end to end.")

    def run(self) -> Outcome:
        """Trains until the last step or a stop, from `job.resume` on where there is one.

        Raises Stopped at a pause and where nothing was learnt yet, UserError where loss or memory broke or the state is another run's.
        """
        try:
            return self._train()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                raise self._too_large() from error
            raise

    def _train(self) -> Outcome:
        self.learner.model.train()
        if self.job.resume:
            self._take_up(self.job.resume)
        if self._look_is_due():
            self._evaluate()
        self.job.phase("training", f"{self.total} steps")
        for batches in islice(self._batches(), self.outcome.steps, self.total):
            if self.job.stopping() or not self._step(batches):
                return self._stopped()
            self._after_step()
        return self._stopped() if self.job.stopping() else self.outcome

    def _take_up(self, folder: Path) -> None:
        """Everything as it was when the state was saved, so that the next step is the one that would have followed."""
        saved = json.loads((folder / "state.json").read_bytes())
        refuse_other_origin(saved["origin"], self.origin, step=saved["progress"]["steps"])
        if saved["machine"] != self.machine:
            was = ", ".join(f"{name} {value}" for name, value in saved["machine"].items() if value != self.machine[name])
            self.job.note(f"The steps before this were made with {was}. From here on, losses may differ in their last digits.")
        self.learner.load_weights(folder)
        read_optimizer(self.learner.optimizer, folder)
        looks = {int(step): loss for step, loss in saved["progress"].pop("validation_losses").items()}
        self.outcome = Outcome(**saved["progress"], validation_losses=looks)
        self.saved_at, self.looked_at = self.outcome.steps, saved["looked_at"]
        RandomNumbers.read(folder).restore()

    def _save(self) -> None:
        """A state of this very step, which is not saved twice."""
        step = self.outcome.steps
        if self.saved_at == step:
            return
        state = {"progress": asdict(self.outcome), "looked_at": self.looked_at, "origin": self.origin, "machine": self.machine}

        def write(folder: Path) -> None:
            self.learner.save_weights(folder)
            write_optimizer(self.learner.optimizer, folder)
            RandomNumbers.now().write(folder)
            (folder / "state.json").write_text(json.dumps(state))

        folder = save_state(self.job.checkpoints, step=step, write=write, validation_loss=self.outcome.validation_losses.get(step))
        self.saved_at = step
        self.job.checkpoint(step=step, folder=folder)

    def _batches(self) -> Iterator[list[list[int]]]:
        return step_batches(
            [row.length for row in self.train],
            batch_size=self.config.batch_size,
            accumulation=self.config.gradient_accumulation,
            seed=self.config.seed,
            layout=self.reader.layout,
        )

    def _step(self, batches: list[list[int]]) -> bool:
        """One step of the optimizer; False where a stop came in its middle, which leaves everything as it was before."""
        started, before = time.perf_counter(), RandomNumbers.now()
        targets = sum(self.train[number].targets for batch in batches for number in batch)
        loss, tokens = 0.0, 0
        for numbers in batches:
            if self.job.stopping():
                before.restore()  # dropout may have drawn already
                return False
            batch = self.reader.batch([self.train[number] for number in numbers])
            with self.arithmetic.autocast():
                part = summed_loss(self.reader.head, self.reader.hidden(batch), batch.targets) / targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            tokens += batch.tokens
        norm = float(clip_grad_norm_(self.learner.parameters, self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._broken("loss" if not math.isfinite(loss) else "gradient")
        rate = self._set_learning_rate()
        self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._report(loss=loss, norm=norm, rate=rate, tokens=tokens, rows=sum(map(len, batches)), seconds=time.perf_counter() - started)
        return True

    def _set_learning_rate(self) -> float:
        config = self.config
        factor = learning_rate_factor(self.outcome.steps, total=self.total, warmup=config.warmup, scheduler=config.scheduler)
        for group, highest in zip(self.learner.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = highest * factor
        return self.highest[0] * factor

    def _report(self, *, loss: float, norm: float, rate: float, tokens: int, rows: int, seconds: float) -> None:
        done = self.outcome
        done.steps += 1
        done.tokens += tokens
        done.seconds += seconds
        done.losses.append(loss)
        done.rows += rows
        self.job.metric(
            step=done.steps,
            total=self.total,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens_per_second=tokens / max(seconds, 1e-9),
            memory=memory_in_use(self.arithmetic.device),
            tokens=done.tokens,
            epoch=done.rows / len(self.train),
        )
        self.job.progress(done.steps, self.total, "steps")

    def _after_step(self) -> None:
        step = self.outcome.steps
        last = step == self.total
        if self._look_is_due():
            self._evaluate()
            if not last and not self.job.stopping():
                self.job.phase("training", f"{self.total} steps")
        if step % self.save_every == 0 and not last and not self.job.stopping():
            self._save()

    def _look_is_due(self) -> bool:
        step = self.outcome.steps
        return self.looked_at != step and (step % self.evaluate_every == 0 or step == self.total)

    def _evaluate(self) -> None:
        if not self.validation and not self.job.prompts:
            return
        self.job.phase("evaluating", "Looking at rows that are not trained on")
        step = self.outcome.steps
        with self._at_rest():
            loss = self._validation_loss()
            if loss is not None:
                self.outcome.validation_losses[step] = loss
                self.job.metric(step=step, total=self.total, validation_loss=loss)
            for prompt in self.job.prompts:
                said = answer(
                    self.learner.causal,
                    self.learner.tokenizer,
                    [{"role": "user", "content": prompt}],
                    SAMPLE_TOKENS,
                    stopping=self.job.stopping,
                )
                if self.job.stopping():
                    return
                self.job.sample(step=step, prompt=prompt, answer=said)
        if not self.job.stopping():
            self.looked_at = step

    def _validation_loss(self) -> float | None:
        """Mean loss per supervised token, or None where there are no rows or a stop came first."""
        loss, targets = 0.0, 0
        size = self.config.batch_size
        for start in range(0, len(self.validation), size):
            if self.job.stopping():
                return None
            batch = self.reader.batch(self.validation[start : start + size])
            loss += summed_loss(self.reader.head, self.reader.hidden(batch), batch.targets).item()
            targets += len(batch.targets)
            self.job.progress(min(start + size, len(self.validation)), len(self.validation), "rows")
        if targets and not math.isfinite(loss):
            raise self._broken("validation loss")
        return loss / targets if targets else None

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
        if self.job.pausing():
            self.job.phase("saving", "Saving the state to go on from")
            self._save()
            raise Stopped
        self.outcome.stopped = True
        return self.outcome

    def _broken(self, what: str) -> UserError:
        there = states(self.job.checkpoints)
        kept = f"The checkpoint of step {step_of(there[-1])} is kept." if there else "There was no checkpoint yet."
        lower = self.config.learning_rate / 5
        return UserError(
            f"The {what} was no longer a number at step {self.outcome.steps + 1}: the learning rate of {self.config.learning_rate:g} is "
            f"probably too high for these rows. {kept} Try again with {lower:.1g}.",
            fields={"learning_rate": f"Try {lower:.1g}."},
            code="diverged",
        )

    def _too_large(self) -> UserError:
        config = self.config
        half = config.batch_size // 2
        change = (
            f"batch size {half} and accumulation {config.gradient_accumulation * 2}" if half else f"max length {config.max_length // 2}"
        )
        return UserError(
            f"The worker ran out of memory at step {self.outcome.steps + 1}. Try again with {change}.",
            fields={"batch_size" if half else "max_length": "Too much for this worker's memory."},
            code="out_of_memory",
        )


def out_of_memory(error: BaseException) -> bool:
    """torch has a type for a GPU that is full; for main memory it raises a RuntimeError with words of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak on a GPU, what the process holds now on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return int(psutil.Process().memory_info().rss)
