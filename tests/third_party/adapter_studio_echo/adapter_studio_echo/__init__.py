"""Counts the words of a dataset and calls it training: the smallest whole plugin."""

import json
import time
from collections import Counter
from pathlib import Path

from studio.training import Estimate, Issue, Memory, Span, TrainConfig, TrainingPlugin, setting
from studio.training.memory import planned_steps


class Echo(TrainingPlugin):
    """Counts words. Nothing that a GPU would be needed for."""

    name = "echo"
    title = "Echo"
    method = "none"

    class Config(TrainConfig):
        keep: int = setting(100, label="Words to keep", ge=1, le=10_000)
        """The most frequent words that the result holds."""

    def check(self, config, base, data, host):
        if config.keep > 1000:
            return [Issue(level="warning", field="keep", message="More than 1000 words make a large file.")]
        return []

    def estimate(self, config, base, data, host):
        steps = planned_steps(config, rows=data.train)
        return Estimate(
            memory=Memory(
                weights=0,
                adapter=0,
                gradients=0,
                optimizer=0,
                activations=0,
                logits=0,
                overhead=60_000_000,
                low=30_000_000,
                high=240_000_000,
            ),
            trainable_parameters=0,
            steps=steps,
            seconds=Span(low=0.01 * steps, high=0.1 * steps + 5),
            disk=config.keep * 40 + 4_000,
            available=host.memory,
        )

    def train(self, config, job):
        words = Counter()
        for row in job.rows("train"):
            words.update(json.dumps(row).split())
        steps = planned_steps(config, rows=job.data.train)
        job.phase("training", f"{steps} steps")
        for step in range(1, steps + 1):
            if job.stopping():
                break  # what was learnt is kept
            time.sleep(0.01)
            job.metric(step=step, total=steps, loss=1 / step)
            job.progress(step, steps, "steps")
        job.phase("saving")
        Path(job.out, "words.json").write_text(json.dumps(words.most_common(config.keep)))
        return job.out
