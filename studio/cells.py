"""What stands in a cell of a CSV file: text that no spreadsheet calculates with, and JSON for what has parts."""

from typing import Any

import orjson

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a cell begins with that a spreadsheet would take for a formula, or would cut off before it looks."""


def cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return f"'{text}" if text.startswith(FORMULA) else text
