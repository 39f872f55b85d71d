"""How a model turns positions into angles, and what a GGUF says about it: keys, and tensors of divisors. No weights.

Formulas are those of transformers' modeling_rope_utils.py; the keys and what llama.cpp makes of them are those of its
src/llama-context.cpp and `ggml_rope_ext` (MIT). A setting that llama.cpp would compute otherwise is refused.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.errors import UserError
from studio.ml.gguf.header import Entry
from studio.ml.gguf.settings import Config, positive, whole

Array = npt.NDArray[np.float32]

SAME = {"su": "longrope"}
"""Older names."""
THETA = 10_000.0
BETAS = {"beta_fast": 32, "beta_slow": 1}
"""Where YaRN's ramp ends, in turns; llama.cpp reads no others for the families here."""


@dataclass(frozen=True)
class Rope:
    """The rotation of one kind of layer."""

    kind: str
    theta: float
    columns: int
    """Columns of a head that are rotated."""
    context: int
    original: int
    """Tokens that the model had been trained on before its context was stretched."""
    settings: Config = field(default_factory=dict)


def read_rope(config: Config, *, kinds: tuple[str, ...], head_size: int, partial: bool, context: int) -> Rope:
    """The rotation of layers without a window as config.json has it, in the words of any transformers.

    Raises UserError for a kind that is not among `kinds`, for a head that is rotated in part unless `partial`, and for settings that
    llama.cpp cannot follow.
    """
    settings = layer_settings(config, "full_attention")
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    kind = SAME.get(kind, kind)
    if kind not in kinds:
        raise UserError(
            f"The base model stretches its context with {kind[:40]}, which llama.cpp does not do for it. "
            f"A GGUF can be built for: {', '.join(kinds)}."
        )
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings") or context
    rope = Rope(
        kind=kind,
        theta=positive(settings.get("rope_theta") or config.get("rope_theta") or THETA, "rope_theta"),
        columns=_columns(settings, config, head_size=head_size, partial=partial),
        context=context,
        original=max(2, whole({"original_max_position_embeddings": original}, "original_max_position_embeddings")),
        settings=settings,
    )
    if kind == "yarn":
        _refuse_yarn(rope)
    entries(rope), tensors(rope)  # whatever is missing or no number is refused now
    return rope


def entries(rope: Rope) -> dict[str, Entry]:
    """The keys of one rotation, without the architecture that stands before each."""
    found = {"rope.dimension_count": Entry("UINT32", rope.columns), "rope.freq_base": Entry("FLOAT32", rope.theta)}
    if rope.kind in ("linear", "yarn", "longrope"):
        found["rope.scaling.type"] = Entry("STRING", rope.kind)
    if rope.kind in ("linear", "yarn"):
        found["rope.scaling.factor"] = Entry("FLOAT32", _factor(rope))
    if rope.kind in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = Entry("UINT32", rope.original)
        # for YaRN llama.cpp multiplies its own length with the key
        length = _length(rope) / (_yarn_length(_factor(rope)) if rope.kind == "yarn" else 1.0)
        if not math.isclose(length, 1.0, rel_tol=1e-6):
            found["rope.scaling.attn_factor"] = Entry("FLOAT32", length)
    return found


def tensors(rope: Rope) -> dict[str, Array]:
    """Divisors of the frequencies by the tensor's name, each of shape (columns / 2,); empty where keys say it all."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": _llama3(rope)}
    if rope.kind == "longrope":
        return {f"rope_factors_{length}.weight": _listed(rope, f"{length}_factor") for length in ("long", "short")}
    return {}


def layer_settings(config: Config, layers: str) -> dict[str, Any]:
    """What config.json says of the rotation in `layers`, full_attention or sliding_attention.

    transformers 5 writes rope_parameters, by kind of layer where there are several; before, rope_scaling stood beside rope_theta.
    """
    found = config.get("rope_parameters") or {}
    if isinstance(found, dict) and ("full_attention" in found or "sliding_attention" in found):
        found = found.get(layers) or {}
    if not isinstance(found, dict):
        raise UserError("The base model's rope_parameters cannot be read. Register it again.")
    older = config.get("rope_scaling") if layers == "full_attention" else None
    return {**found, **older} if isinstance(older, dict) else dict(found)


def _columns(settings: Config, config: Config, *, head_size: int, partial: bool) -> int:
    share = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if share == 1:
        return head_size
    columns = int(head_size * positive(share, "partial_rotary_factor"))
    if not partial or not 2 <= columns < head_size or columns % 2:
        raise UserError(f"The base model rotates {columns} of a head's {head_size} columns, which llama.cpp does not do for it.")
    return columns


def _llama3(rope: Rope) -> Array:
    """Source: transformers' `_compute_llama3_parameters`, as llama.cpp's converter writes it."""
    factor = _factor(rope)
    low, high = (positive(rope.settings.get(f"{end}_freq_factor"), f"{end}_freq_factor") for end in ("low", "high"))
    if not low < high:
        raise UserError("The base model's rope settings have a low_freq_factor that is not below its high_freq_factor. Register it again.")
    frequencies = 1.0 / rope.theta ** (np.arange(0, rope.columns, 2, dtype=np.float32) / rope.columns)
    turns = rope.original * frequencies / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between)).astype(np.float32)


def _listed(rope: Rope, key: str) -> Array:
    values = rope.settings.get(key)
    if not isinstance(values, list) or len(values) != rope.columns // 2:
        raise UserError(f"The base model's {key} has to hold {rope.columns // 2} numbers. Register it again.")
    return np.array([positive(value, key) for value in values], np.float32)


def _length(rope: Rope) -> float:
    """By how much rotated queries and keys grow: transformers' attention_factor."""
    given = rope.settings.get("attention_factor")
    if given is not None:
        return positive(given, "attention_factor")
    if rope.kind == "longrope":
        factor = _factor(rope)
        return math.sqrt(1 + math.log(factor) / math.log(rope.original)) if factor > 1 else 1.0
    numerator, denominator = rope.settings.get("mscale"), rope.settings.get("mscale_all_dim")
    if numerator and denominator:
        scales = positive(numerator, "mscale"), positive(denominator, "mscale_all_dim")
        return _yarn_length(_factor(rope), scales[0]) / _yarn_length(_factor(rope), scales[1])
    return _yarn_length(_factor(rope))


def _yarn_length(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factor(rope: Rope) -> float:
    given = rope.settings.get("factor")
    if given is None and rope.kind in ("yarn", "longrope"):
        given = max(1.0, rope.context / rope.original)
    factor = positive(given, "factor")
    if factor < 1:
        raise UserError("The base model's rope settings have a factor below 1, which llama.cpp does not follow. Choose another base model.")
    return factor


def _refuse_yarn(rope: Rope) -> None:
    for key, value in BETAS.items():
        if rope.settings.get(key) not in (None, value):
            raise UserError(f"The base model's YaRN has {key} {rope.settings[key]}, llama.cpp computes with {value}. No GGUF can be built.")
    if not rope.settings.get("truncate", True):
        raise UserError("The base model's YaRN does not truncate its range, llama.cpp's does. No GGUF can be built from it.")
