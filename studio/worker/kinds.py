"""Who does which kind of order. Each is `run(payload, job) -> facts`, loaded by name when it is needed."""

import importlib
from collections.abc import Callable
from typing import Any

from studio.training.job import Job
from studio.training.orders import Kind

Run = Callable[[dict[str, Any], Job], dict[str, Any]]
"""Leaves what should remain in `job.out`; returns facts about it, which the `end` event carries."""

KINDS: dict[Kind, str] = {
    "train": "studio.worker.train:run",
    "base_model": "studio.ml.importing:run",
    "dataset": "studio.datasets.importing:run",
    "mix": "studio.datasets.mixing:run",
    "revision": "studio.datasets.revising:run",
    "tokens": "studio.ml.tokenstats:run",
    "token_view": "studio.ml.tokenview:run",
    "synthesis": "studio.datasets.synthesizing:run",
    "fetch": "studio.datasets.fetching:run",
    "build": "studio.ml.gguf.building:run",
    "adapter": "studio.ml.uploaded.taking:run",
    "evaluation": "studio.ml.evaluating:run",
    "trial": "studio.ml.trying:run",
    "comparison": "studio.ml.comparing:run",
    "survey": "studio.ml.surveying:run",
    "extraction": "studio.ml.extracting:run",
}

WITHOUT_TORCH: frozenset[Kind] = frozenset({"tokens", "token_view"})
"""These only need a tokenizer, whose library would load torch on the way where it is installed: seconds, for somebody who waits."""

WORDS: dict[Kind, str] = {
    "train": "The training code",
    "base_model": "Reading the base model",
    "dataset": "Reading the dataset",
    "mix": "Putting the rows together",
    "revision": "Saving the changes",
    "tokens": "Counting the tokens",
    "token_view": "Reading the rows as tokens",
    "synthesis": "Writing rows",
    "fetch": "Fetching the file",
    "build": "Building the file",
    "adapter": "Looking through the adapter",
    "evaluation": "Evaluating the release",
    "trial": "Asking the models",
    "comparison": "Measuring the comparison",
    "survey": "Looking at the rows with the base model",
    "extraction": "Taking the adapters out",
}
"""What failed, in a sentence that goes on with "failed: ...\""""


def load(kind: Kind) -> Run:
    module, function = KINDS[kind].split(":")
    run: Run = getattr(importlib.import_module(module), function)
    return run
