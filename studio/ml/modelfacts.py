"""What a base model is, from config.json and the headers of its safetensors. Nothing is loaded; no torch, no transformers.

A header is a stranger's claim: names, shapes and sizes are checked against each other and against the file before any library
opens it. The format: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data without holes).
"""

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.toolmessages import takes_tools
from studio.training import ModelFacts
from studio.training.facts import Linear

LARGEST_HEADER = 100 << 20
LARGEST_CONFIG = 16 << 20
LARGEST_DIMENSION = 1 << 32
MOST_DIMENSIONS = 6
MOST_TENSORS = 200_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NEW_TOKENS = "new_tokens.json"
"""Tokens that the model was given here, `{"tokens": [...]}`; see `studio.ml.newtokens`."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Formats that can be trained from, as torch calls them."""
FLOATS = "Register the model in float32, float16 or bfloat16."
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,512}")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.\d+\.(?:.*\.)?([A-Za-z0-9_]+)\.weight$")
"""The weight of a module inside a numbered layer; the group is the module's own name."""
OUTPUT_LAST = {"gpt2", "openai-gpt"}
"""Families whose linear layers are stored [inputs, outputs]."""


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    size: int
    """Bytes."""

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_model_facts(folder: Path, name: str = "", *, license: str = "") -> ModelFacts:
    """The facts of a base model folder. Raises UserError for a damaged one, or one that does not write text from left to right."""
    config = read_config(folder)
    tensors = read_tensors(folder)
    family, architecture = str(config.get("model_type", "")), causal_architecture(config)
    heads, hidden = _number(config, "num_attention_heads", "n_head"), _number(config, "hidden_size", "n_embd")
    has_output = any(tensor.endswith(("lm_head.weight", "embed_out.weight")) for tensor in tensors)
    tied = not has_output or bool(config.get("tie_word_embeddings", False))
    return ModelFacts(
        name=name or folder.name,
        architecture=architecture,
        family=family,
        parameters=sum(tensor.count for key, tensor in tensors.items() if not (tied and key.endswith("lm_head.weight"))),
        hidden_size=hidden,
        layers=_number(config, "num_hidden_layers", "n_layer"),
        intermediate_size=_intermediate_size(config, hidden),
        vocabulary=_number(config, "vocab_size"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", default=heads),
        head_size=_number(config, "head_dim", default=hidden // heads),
        context_length=_number(config, "max_position_embeddings", "n_positions"),
        tied=tied,
        dtype=_dtype(tensors),
        size=sum(tensor.size for tensor in tensors.values()),
        linears=_linears(tensors, outputs_last=family in OUTPUT_LAST),
        chat_template=_has_template(folder),
        takes_tools=_takes_tools(folder),
        license=license,
        new_tokens=len(new_tokens(folder)),
    )


def new_tokens(folder: Path) -> list[str]:
    """The tokens that a base model was given here; none for one as it came."""
    file = folder / NEW_TOKENS
    found: list[str] = read_json(file)["tokens"] if file.is_file() else []
    return found


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", largest=LARGEST_CONFIG)


def causal_architecture(config: dict[str, Any]) -> str:
    """The class in config.json; a UserError that says what the model is where it is no causal language model."""
    named = config.get("architectures")
    found = str(named[0]) if isinstance(named, list) and named else ""
    if found.endswith(("ForCausalLM", "LMHeadModel")):
        return found
    what = found or config.get("model_type") or "a model that does not say what it is"
    raise UserError(f"This is {str(what)[:80]}, not a causal language model. Choose a model whose config.json names a ...ForCausalLM.")


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    weight_map = read_json(folder / INDEX, largest=LARGEST_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{INDEX} names no weights. Fetch the model again.")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{INDEX} names files that are not safetensors of this folder. Fetch the model again.")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder by name, from its headers."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise UserError(f"The tensor {name[:80]} stands in two files. Fetch the model again.")
            tensors[name] = tensor
    if not tensors:
        raise UserError("The weights hold no tensors. Fetch the model again.")
    return tensors


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file describes. Their bytes must fill the file without a hole, an overlap or a repeat."""
    if not file.is_file():
        raise UserError(f"{file.name} is missing. A base model needs its weights as safetensors.")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, max(size - 8, 0)):
            raise _damaged(file, "it is cut off, or not a safetensors file")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _damaged(file, f"its header cannot be read ({error})") from error
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise _damaged(file, "its header is no list of tensors")
    header.pop("__metadata__", None)
    _fills(file, header, data=size - 8 - length)
    return {name: _tensor(file, name, entry) for name, entry in header.items()}


def _fills(file: Path, header: dict[str, Any], *, data: int) -> None:
    places = []
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int and offset >= 0 for offset in offsets)):
            raise _damaged(file, f"the place of {name[:80]!r} is no pair of numbers")
        places.append((offsets[0], offsets[1]))
    end = 0
    for start, stop in sorted(places):
        if start != end or stop < start:
            raise _damaged(file, "its tensors overlap or leave a hole")
        end = stop
    if end != data:
        raise _damaged(file, f"it holds {data} bytes of weights, its header describes {end}")


def _tensor(file: Path, name: str, entry: dict[str, Any]) -> Tensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not TENSOR_NAME.fullmatch(name) or ".." in name:
        raise _damaged(file, f"{name[:80]!r} is no name for a tensor")
    if not (isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS and all(_sane(length) for length in shape)):
        raise _damaged(file, f"{name} has an impossible shape")
    if dtype not in BYTES:
        raise UserError(f"{name} is stored as {str(dtype)[:20]}, which cannot be trained from. {FLOATS}")
    start, stop = entry["data_offsets"]
    tensor = Tensor(dtype=dtype, shape=tuple(shape), size=math.prod(shape) * BYTES[dtype])
    if tensor.size != stop - start:
        raise _damaged(file, f"{name} takes {stop - start} bytes, its shape needs {tensor.size}")
    return tensor


def _sane(length: Any) -> bool:
    return type(length) is int and 0 <= length <= LARGEST_DIMENSION


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file.name} is damaged: {reason}. Fetch it again.", code="damaged")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _dtype(tensors: dict[str, Tensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.size
    most = sizes.most_common(1)[0][0]
    if most not in NAMES:
        raise UserError(f"The weights are quantised ({most}), which cannot be trained from. {FLOATS}")
    return NAMES[most]


def _linears(tensors: dict[str, Tensor], *, outputs_last: bool) -> list[Linear]:
    shapes: Counter[tuple[str, int, int]] = Counter()
    for name, tensor in tensors.items():
        found = LAYER.search(name)
        if found and len(tensor.shape) == 2:
            outputs, inputs = reversed(tensor.shape) if outputs_last else tensor.shape
            shapes[found[1], inputs, outputs] += 1
    return [Linear(name=name, inputs=inputs, outputs=outputs, count=count) for (name, inputs, outputs), count in shapes.items()]


def _intermediate_size(config: dict[str, Any], hidden: int) -> int:
    return _number(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)


def _number(config: dict[str, Any], *names: str, default: int = 0) -> int:
    """The first of these settings that is there, as a count above zero."""
    value = next((config[name] for name in names if config.get(name) is not None), default or None)
    if type(value) is not int or not 0 < value <= LARGEST_DIMENSION:
        raise UserError(f"config.json has no sensible {names[0]} ({str(value)[:40]}). Fetch the model again.")
    return value


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings, largest=LARGEST_HEADER).get("chat_template"))


def _takes_tools(folder: Path) -> bool:
    from studio.ml.tokens import own_template  # which knows templates, and with them much of transformers

    return takes_tools(own_template(folder) or "")


def read_json(file: Path, *, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file.name} is missing. Choose the folder that holds the whole model.")
    if file.stat().st_size > largest:
        raise UserError(f"{file.name} is too large to be what it says. Fetch the model again.")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file.name} must hold an object {{...}}. Fetch the model again.")
    return content
