"""What a GGUF model takes in memory while it answers, from its header alone: before it is loaded, somebody must make room."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from studio.ml.gguf.header import Header, read_header

OVERHEAD = 64 << 20
"""Bytes of a process that has loaded nothing: Python, llama.cpp, its buffers of work."""
F16 = 2
LOGIT = 4


@dataclass(frozen=True)
class Footprint:
    weights: int
    """Bytes."""
    parameters: int
    per_token: int
    """Bytes of each token of a conversation that is kept in mind."""
    vocabulary: int
    context: int
    """Tokens that the model was made for."""
    pooling: bool
    """Whether the file says how a text becomes one vector."""

    def bytes(self, *, tokens: int, batch: int) -> int:
        """With `tokens` of all conversations together, `batch` of which are computed at once."""
        return self.weights + tokens * self.per_token + batch * self.vocabulary * LOGIT + OVERHEAD


def footprint(path: Path) -> Footprint:
    """Raises InvalidGguf for what is no GGUF file."""
    header = read_header(path)
    return Footprint(
        weights=header.size,
        parameters=sum(prod(tensor.shape) for tensor in header.tensors.values()),
        per_token=F16 * kept_per_token(header),
        vocabulary=max((tensor.shape[-1] for name, tensor in header.tensors.items() if name == "token_embd.weight"), default=0),
        context=number(header, "context_length") or 4096,
        pooling=number(header, "pooling_type") > 0,
    )


def kept_per_token(header: Header) -> int:
    """Numbers that attention keeps: keys and values of every layer. An upper bound where a model keeps less."""
    layers, heads = number(header, "block_count"), number(header, "attention.head_count") or 1
    width = number(header, "embedding_length") // heads
    keys, values = number(header, "attention.key_length") or width, number(header, "attention.value_length") or width
    told = header.get(f"{architecture(header)}.attention.head_count_kv")
    by_layer = told if isinstance(told, list | tuple) else [told if isinstance(told, int) else heads] * layers
    return sum(int(each) for each in by_layer if isinstance(each, int)) * (keys + values)


def number(header: Header, name: str) -> int:
    """0 where the file does not say, or says it for each layer."""
    found = header.get(f"{architecture(header)}.{name}")
    return found if isinstance(found, int) else 0


def architecture(header: Header) -> str:
    return str(header.get("general.architecture"))
