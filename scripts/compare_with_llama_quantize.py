"""Holds our files against llama.cpp's own tool, tensor by tensor: python -m scripts.compare_with_llama_quantize LLAMA_QUANTIZE BASE

BASE is a folder with safetensors. Each type is built by the studio and by the tool, which starts from the studio's f32 file: without an
importance matrix, and with one of random numbers for every matrix inside the layers. Exit code 1 where a type or a byte differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from studio.ml.gguf import architectures
from studio.ml.gguf.exporting import Target, export_all
from studio.ml.gguf.header import Entry, Header, Tensor, read_header
from studio.ml.gguf.recipes import RECIPES
from studio.ml.gguf.weights import Array, Weights
from studio.ml.gguf.writing import Planned, write_small

CHUNK = 16 << 20
OWN_MIX = {"mxfp4": ("MXFP4_MOE", ["--tensor-type", r"^blk\.=mxfp4"])}
"""Types whose mix is not llama.cpp's: the tool is told the mix, and the bytes are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--types", default=",".join(RECIPES))
    parser.add_argument("--folder", type=Path, help="where the files are made; they are deleted")
    arguments = parser.parse_args()
    types = [name for name in RECIPES if name in arguments.types.split(",")]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        importance = random_importance(arguments.base)
        export_all(base=arguments.base, adapter=None, targets=[Target("f32", work / "f32.gguf")], name="compared")
        write_importance(work / "importance.gguf", arguments.base, importance)
        equal = [
            compare(arguments.tool, arguments.base, name, work, importance if weighed else None)
            for weighed in (False, True)
            for name in types
            if not weighed or RECIPES[name].weighed
        ]
    sys.exit(0 if all(equal) else 1)


def compare(tool: Path, base: Path, name: str, work: Path, importance: dict[str, Array] | None) -> bool:
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    weighed = importance is not None
    export_all(base=base, adapter=None, targets=[Target(name, ours, importance=weighed)], name="compared", importance=importance)
    option, more = OWN_MIX.get(name, (name.upper(), []))
    more = [*more, *(["--imatrix", str(work / "importance.gguf")] if weighed else [])]
    subprocess.run([tool, *more, work / "f32.gguf", theirs, option], check=True, capture_output=True)
    one, other = read_header(ours), read_header(theirs)
    same_type = [tensor for tensor in one.tensors.values() if other.tensors[tensor.name].type == tensor.type]
    same_bytes = sum(equal_bytes(ours, one, theirs, other, tensor.name) for tensor in same_type)
    count = len(one.tensors)
    sound = list(one.tensors) == list(other.tensors) and one.get("general.file_type") == other.get("general.file_type")
    print(f"{name:8} {'importance' if weighed else '':10} {len(same_type)}/{count} types, {same_bytes}/{count} tensors equal", flush=True)
    for tensor in one.tensors.values():
        if tensor not in same_type:
            print(f"  {tensor.name}: {tensor.type}, llama.cpp takes {other.tensors[tensor.name].type}")
    return sound and same_bytes == count


def equal_bytes(ours: Path, one: Header, theirs: Path, other: Header, name: str) -> bool:
    mine, its = one.tensors[name], other.tensors[name]
    with ours.open("rb") as first, theirs.open("rb") as second:
        first.seek(one.data_start + mine.offset)
        second.seek(other.data_start + its.offset)
        return mine.size == its.size and all(first.read(size) == second.read(size) for size in sizes(mine))


def sizes(tensor: Tensor) -> list[int]:
    return [min(CHUNK, tensor.size - start) for start in range(0, tensor.size, CHUNK)]


def random_importance(base: Path) -> dict[str, Array]:
    """By the base's names, since that is how it is measured."""
    generator = np.random.default_rng(1)
    with Weights.of_model(base) as weights:
        matrices = {name: place.shape for name, place in sorted(weights.places.items()) if ".layers." in name and len(place.shape) == 2}
    return {name: generator.exponential(size=shape[1]).astype(np.float32) for name, shape in matrices.items()}


def write_importance(path: Path, base: Path, importance: dict[str, Array]) -> None:
    """As llama-imatrix writes it: sums of squares, and how many they are of."""
    shape = architectures.read_shape(base)
    entries = {
        "general.type": Entry("STRING", "imatrix"),
        "imatrix.datasets": Entry("ARRAY", ["random"], "STRING"),
        "imatrix.chunk_count": Entry("UINT32", 1),
        "imatrix.chunk_size": Entry("UINT32", 512),
    }
    tensors = []
    for name, vector in importance.items():
        for suffix, values in (("in_sum2", vector), ("counts", np.ones(1, np.float32))):
            planned = Planned(f"{shape.tensor_name(name)}.{suffix}", (1, len(values)), "F32", values.nbytes)
            tensors.append((planned, values.view(np.uint8)))
    write_small(path, entries, tensors)


if __name__ == "__main__":
    main()
