"""Builds of the kind "merged": a model that transformers loads, base and adapter as one, in a folder of safetensors."""

import math

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.build import Build, Built, Made, recorded
from studio.ml.gguf.cases import MOST_LOGITS
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.merging import write_merged
from studio.ml.gguf.shards import BYTES, Precision
from studio.ml.gguf.weights import Weights

PRECISIONS: dict[str, Precision] = {"f32": "f32", "f16": "f16", "bf16": "bf16"}
BESIDE = 100 << 20
"""Bytes of what lies beside the weights, above all the tokenizer."""


def sizes(build: Build) -> list[int]:
    """Bytes of each folder. Raises UserError for what cannot be merged, from headers alone."""
    if unknown := [name for name in build.order.quantizations if name not in PRECISIONS]:
        raise UserError(f"Merged weights are {', '.join(PRECISIONS)}, not {unknown[0]}. Build a GGUF file of that type.")
    shape = architectures.read_shape(build.base)  # its proof reads it layer by layer where it is large, which needs to know the family
    with Weights.of_model(build.base) as weights:
        parameters = sum(math.prod(place.shape) for place in weights.places.values())
        if build.adapter:
            read_adapter(build.adapter, weights, tied=shape.tied).close()
    return [parameters * BYTES[PRECISIONS[name]] + BESIDE for name in build.order.quantizations]


def disk(build: Build, sizes: list[int]) -> int:
    """Bytes that writing and checking take."""
    return sum(sizes) + MOST_LOGITS


def make(build: Build, *, memory: int) -> Built:
    """Writes the folders, and checks each. `memory` is in bytes, for the model that they are compared with."""
    from studio.ml.gguf.verifying import verify_merged

    built: Built = {}
    for name in build.order.quantizations:
        folder, precision = build.folder(name), PRECISIONS[name]
        build.writes([f"the merged model in {name}"])
        made = write_merged(
            base=build.base,
            adapter=build.adapter,
            precision=precision,
            folder=folder,
            progress=build.told,
            stopping=build.job.stopping,
            state=build.state / name,
            threads=build.threads,
        )
        build.checks([name])
        proof = verify_merged(
            folder=folder, base=build.base, adapter=build.adapter, precision=name, rows=build.compared, job=build.job, memory=memory
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
        built[name] = recorded(build, Made(name, None, size, proof, {name.upper(): int(str(made["tensors"]))}))
    return built
