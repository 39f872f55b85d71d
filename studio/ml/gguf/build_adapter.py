"""Builds of the kind "gguf_adapter": a LoRA as a file of its own, which llama.cpp adds to a running base."""

from pathlib import Path

from studio.errors import UserError
from studio.ml.gguf import architectures, reports
from studio.ml.gguf.adapters import Precision, export_adapter
from studio.ml.gguf.build import Build, Built, Made, recorded
from studio.ml.gguf.cases import MOST_LOGITS
from studio.ml.gguf.exporting import estimated_size, export
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.weights import Weights

TYPES = ("f16", "f32")
CHECKED_ON = "f16"
"""The type of the base that an adapter is checked on; it goes on any."""


def sizes(build: Build) -> list[int]:
    """Bytes of the base that it is checked on with the adapter. Raises UserError for what cannot be swapped, from headers alone."""
    if unknown := [name for name in build.order.quantizations if name not in TYPES]:
        raise UserError(f"A GGUF adapter is f16 or f32, not {unknown[0]}.")
    if build.adapter is None:
        raise UserError("A GGUF adapter is built from an adapter. Of a whole model, build a GGUF file.")
    shape = architectures.read_shape(build.base)
    with Weights.of_model(build.base) as weights, read_adapter(build.adapter, weights, tied=shape.tied) as read:
        if not read.swappable:
            raise UserError(
                "An adapter with DoRA or with tables of its own cannot be swapped on a running model. Build a merged GGUF from it.",
                code="not_swappable",
            )
    return [estimated_size(build.base, CHECKED_ON) + _stored(build)]


def disk(build: Build, sizes: list[int]) -> int:
    """Bytes that writing and checking take: twice the adapter as it is for each type, which may be wider."""
    return sum(sizes) + 2 * len(build.order.quantizations) * _stored(build) + MOST_LOGITS


def _stored(build: Build) -> int:
    """Bytes of the adapter as it is."""
    return sum(file.stat().st_size for file in build.adapter.glob("*.safetensors")) if build.adapter else 0


def make(build: Build, *, memory: int) -> Built:
    """Writes the files, and checks each on the base that it is for. `memory` is in bytes, for the model that they are compared with."""
    from studio.ml.gguf.verifying import verify_adapter

    order, job, adapter = build.order, build.job, build.adapter
    assert adapter is not None
    files: dict[str, Path] = {name: build.folder(name) / f"{build.name}-lora-{name}.gguf" for name in order.quantizations}
    build.writes([file.name for file in files.values()])
    for name, file in files.items():
        precision: Precision = "f32" if name == "f32" else "f16"
        export_adapter(base=build.base, adapter=adapter, target=file, precision=precision, name=build.name, about=order.about)
        job.raise_if_stopped()
    base = job.work / f"base-{CHECKED_ON}.gguf"
    job.phase("converting", "Writing the base model that it is checked on")
    export(
        base=build.base,
        adapter=None,
        quantization=CHECKED_ON,
        target=base,
        name="base",
        threads=build.threads,
        progress=build.told,
        stopping=job.stopping,
    )
    built = {}
    for name, file in files.items():
        build.checks([name])
        proof = verify_adapter(
            gguf=file,
            base=build.base,
            adapter=adapter,
            rows=build.compared,
            job=job,
            threads=build.llamacpp_threads,
            memory=memory,
            base_gguf=base,
        )
        built[name] = recorded(build, Made(name, file, file.stat().st_size, proof, reports.tensor_types(file)))
    base.unlink()
    return built
