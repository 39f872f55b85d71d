"""Builds of the kind "gguf": the adapter merged into its base, or a model as it is, as one file for each type."""

from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf import alike, architectures, importance, reports
from studio.ml.gguf.build import Build, Built, Made, recorded
from studio.ml.gguf.cases import MOST_LOGITS
from studio.ml.gguf.choosing import learnt
from studio.ml.gguf.exporting import Target, estimated_sizes, export_all
from studio.ml.gguf.importance import Importance
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.recipes import RECIPES
from studio.ml.gguf.weights import Weights
from studio.storage import remove_folder

IMPORTANCE = "importance.imatrix"
"""Such a file as llama-quantize takes. It does not end in .gguf, so that nobody takes it for a model."""
PLAIN = "plain"
"""What is built without importance, to show what it buys."""


def sizes(build: Build) -> list[int]:
    """Bytes of each file that is written. Raises UserError for what cannot be built, from headers alone."""
    if build.order.importance:
        _refuse_importance(build)
    wanted = [(name, name in weighed(build)) for name in build.order.quantizations] + [(name, False) for name in weighed(build)]
    return estimated_sizes(build.base, wanted, build.adapter)


def disk(build: Build, sizes: list[int]) -> int:
    """Bytes that writing and checking take."""
    return sum(sizes) + len(sizes) * MOST_LOGITS


def weighed(build: Build) -> list[str]:
    """The types that an importance changes, where one is wanted."""
    return [name for name in build.order.quantizations if RECIPES[name].weighed] if build.order.importance else []


def make(build: Build, *, memory: int) -> Built:
    """Writes all files in one pass and checks them against one. `memory` is in bytes, for the model that they are compared with."""
    order, job = build.order, build.job
    tokenizer, names = _words(build)
    for sentence in (*architectures.read_shape(build.base).notes, *alike.caveats(tokenizer)):
        job.note(sentence, level="warning")
    measured = _measured(build, tokenizer, memory=memory) if weighed(build) else None
    files: dict[str, Path] = {name: build.folder(name) / f"{build.name}-{name}.gguf" for name in order.quantizations}
    plain: dict[str, Path] = {name: job.work / PLAIN / f"{name}.gguf" for name in weighed(build)}
    targets = [Target(name, path, importance=name in plain) for name, path in files.items()]
    targets += [Target(name, path) for name, path in plain.items()]
    build.writes([target.path.name for target in targets])
    export_all(
        base=build.base,
        adapter=build.adapter,
        targets=targets,
        name=build.name,
        about=order.about,
        importance={name: vector for name, vector in measured.means().items() if name in names} if measured else None,
        threads=build.threads,
        progress=build.told,
        stopping=job.stopping,
        state=build.state / "files",
    )
    proofs = _verified(build, files, plain, memory=memory)
    remove_folder(job.work / PLAIN)
    built = {}
    for name, file in files.items():
        if measured and name in plain:
            importance.write(file.with_name(IMPORTANCE), measured, names=names, dataset=order.about.dataset or "training rows")
        made = Made(name, file, file.stat().st_size, proofs[name], reports.tensor_types(file), name in plain, tokenizer)
        built[name] = recorded(build, made)
    return built


def _refuse_importance(build: Build) -> None:
    if not weighed(build):
        able = ", ".join(name for name, recipe in RECIPES.items() if recipe.weighed)
        raise UserError(f"The importance of columns changes none of these types. It is used by {able}.")
    if next(learnt(build.order.rows), None) is None:
        raise UserError("The importance of columns is measured on training rows, and there are none. Build without it.")


def _words(build: Build) -> tuple[Path, dict[str, str]]:
    """The folder whose tokenizer counts, the adapter's where the vocabulary grew; and what each tensor is called in the GGUF."""
    shape = architectures.read_shape(build.base)
    with Weights.of_model(build.base) as weights:
        names = {stored: name for stored in weights.places if (name := shape.tensor_name(stored))}
        if build.adapter is None:
            return build.base, names
        with read_adapter(build.adapter, weights, tied=shape.tied) as read:
            return read.tokenizer or build.base, names | ({"lm_head.weight": "output.weight"} if read.untied else {})


def _measured(build: Build, tokenizer: Path, *, memory: int) -> Importance:
    """On the training rows that nothing is compared on."""
    from studio.ml.gguf.reference import Reference
    from studio.ml.tokens import load_tokenizer

    job, order = build.job, build.order
    job.phase("evaluating", "Measuring what matters in the training rows")

    def measure() -> Importance:
        rows = importance.sequences(learnt(order.rows), load_tokenizer(tokenizer), parameters=order.model.parameters)
        with Reference(build.base, build.adapter, job=job, memory=memory) as reference:
            return importance.measure(reference, rows, progress=lambda done, total: job.progress(done, total, "steps"))

    return importance.kept(build.state / "importance.safetensors", measure)


def _verified(build: Build, files: dict[str, Path], plain: dict[str, Path], *, memory: int) -> dict[str, dict[str, Any]]:
    """The proof of each file; of one with importance, also how far the one without is from the model."""
    from studio.ml.gguf.verifying import verify_all

    build.checks(list(files))
    all_files = files | {f"{name}/{PLAIN}": path for name, path in plain.items()}
    found = verify_all(
        all_files,
        quantizations={key: key.partition("/")[0] for key in all_files},
        base=build.base,
        adapter=build.adapter,
        rows=build.compared,
        job=build.job,
        threads=build.llamacpp_threads,
        memory=memory,
    )
    for name, path in plain.items():
        without = found[f"{name}/{PLAIN}"]
        found[name]["plain"] = {key: without[key] for key in ("mean_kl", "perplexity")} | {"size": path.stat().st_size}
    return found
