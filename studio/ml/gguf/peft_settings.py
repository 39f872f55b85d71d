"""What a stranger's adapter_config.json says, checked: ranks and scales by layer, and what no weights can hold. No torch."""

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from studio.errors import UserError

LARGEST_CONFIG = 16 << 20
LONGEST_PATTERN, MOST_BRANCHES = 200, 4
BRANCHES, REPEATED_GROUP = re.compile(r"[*+{?(]"), re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:]")
"""What can make a pattern take for ever: many repeats and choices; repeats of groups, references and conditions at all."""
TYPES = ("LORA", "TRAINABLE_TOKENS")
REFUSED = {
    "target_parameters": "adapters on single parameters (target_parameters)",
    "layer_replication": "replicated layers",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron layers",
}
"""Settings that change what an adapter computes, in words."""
SHIFTING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base's weights, which the adapter alone does not tell. Once peft, or our training, has turned such an
adapter into one of the untouched base, its settings say so."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=1 << 16)]
N = TypeVar("N", int, float)


class Settings(BaseModel):
    """What is read of adapter_config.json."""

    peft_type: str
    r: Rank = 8
    lora_alpha: Number = 8
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Number] | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    token_indices: list[int] | None = None

    def tokens_of(self, layer: str) -> list[int]:
        """Rows of the layer's table that were trained one by one."""
        found = self.trainable_token_indices or self.token_indices or []
        return next((rows for name, rows in found.items() if names(layer, name)), []) if isinstance(found, dict) else found

    def rank(self, layer: str) -> int:
        return _by_pattern("rank_pattern", self.rank_pattern, layer, self.r)

    def alpha(self, layer: str) -> float:
        return _by_pattern("alpha_pattern", self.alpha_pattern, layer, self.lora_alpha)

    def scale(self, layer: str) -> float:
        rank = self.rank(layer)
        return self.alpha(layer) / (rank**0.5 if self.use_rslora else rank)


def read_settings(folder: Path) -> Settings:
    try:
        given: Any = json.loads(read_plain(folder / "adapter_config.json", most=LARGEST_CONFIG))
        settings = Settings.model_validate(given)
    except (OSError, ValidationError, ValueError, RecursionError) as error:
        raise UserError("The adapter has no readable adapter_config.json. Train or upload it again.") from error
    if settings.peft_type not in TYPES:
        raise UserError(f"An adapter of type {settings.peft_type[:40]} cannot be merged into weights; LoRA, rsLoRA and DoRA can.")
    held = [words for key, words in REFUSED.items() if given.get(key)]
    begin = settings.init_lora_weights
    if isinstance(begin, str) and begin.lower().startswith(SHIFTING):
        held.append(f"a start ({begin[:40]}) that changes the base's own weights")
    if held:
        raise UserError(
            f"The adapter holds {', '.join(held)}, which cannot be merged into weights. Train it as plain LoRA, rsLoRA or DoRA."
        )
    return settings


def read_plain(file: Path, *, most: int) -> bytes:
    """The bytes of a regular file of at most `most`. Raises OSError for a link, a device and a larger file."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise OSError(f"{file.name} is no regular file of at most {most} bytes")
        return stream.read(most)


def names(layer: str, name: str) -> bool:
    """True where settings that name `name` mean the layer."""
    return layer == name or layer.endswith(f".{name}")


def _by_pattern(key: str, patterns: Mapping[str, N] | None, layer: str, default: N) -> N:
    """peft's rule (`get_pattern_key`): the first pattern that matches the end of the layer's name."""
    for pattern, value in (patterns or {}).items():
        if len(pattern) > LONGEST_PATTERN or REPEATED_GROUP.search(pattern) or len(BRANCHES.findall(pattern)) > MOST_BRANCHES:
            raise UserError(f"A pattern in the adapter's {key} is longer or more involved than names of layers need: {pattern[:60]}")
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise UserError(f"The adapter's {key} holds a pattern that cannot be read: {pattern[:60]}") from error
    return default
