"""What is told of a file that was built: report.json beside it. It holds no time and no name of the machine."""

import importlib.metadata
import json
from collections import Counter
from pathlib import Path
from typing import Any

from studio.ml.gguf.header import read_header

NAME = "report.json"
MAKERS = ("gguf", "numpy", "peft", "tokenizers", "torch", "transformers", "xllamacpp")
"""Packages that had a part in a build or its proof."""


def versions() -> dict[str, str]:
    found = {}
    for name in MAKERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tensor_types(file: Path) -> dict[str, int]:
    """How many tensors of a GGUF are of each type, the most frequent first."""
    return dict(Counter(tensor.type for tensor in read_header(file).tensors.values()).most_common())


def write(folder: Path, facts: dict[str, Any]) -> None:
    """`facts` must be JSON."""
    content = json.dumps(facts | {"packages": versions()}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / NAME).write_text(content + "\n", encoding="utf-8")
