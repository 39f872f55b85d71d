"""Numbers out of a stranger's config.json, each held against what it may be."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.errors import UserError

Config = Mapping[str, Any]
LARGEST = (1 << 31) - 1
SMALLEST, WIDEST = 2.0**-126, 2.0**127
"""Ends of float32, to the next power of two."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a base model. Raises UserError where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError("The base model has no readable config.json. Register it again.") from error
    if not isinstance(config, dict):
        raise UserError("The base model has no readable config.json. Register it again.")
    return config


def whole(config: Config, key: str, *, default: int | None = None, most: int = LARGEST) -> int:
    """A whole number from 1 to `most`; `default` where config.json says null or nothing."""
    value = default if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise _unusable(value, key)
    return value


def positive(value: Any, name: str) -> float:
    """`value` as a number above 0 that float32 can hold; `name` is what an error calls it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST <= value <= WIDEST:
        raise _unusable(value, name)
    return float(value)


def _unusable(value: Any, name: str) -> UserError:
    found = "missing" if value is None else f"{str(value)[:40]}"
    return UserError(f"The base model's {name} is {found}, which a GGUF cannot hold. Register it again or choose another base model.")
