"""The studio's one pass: `python studio_gguf.py BASE ADAPTER FOLDER TYPE...` writes FOLDER/TYPE.gguf. ADAPTER may be "-"."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from studio.ml.gguf.exporting import Target, export_all


def main(base: str, adapter: str, folder: str, *types: str) -> None:
    targets = [Target(name, Path(folder) / f"{name}.gguf") for name in types]
    export_all(base=Path(base), adapter=None if adapter == "-" else Path(adapter), targets=targets, name="benchmark", threads=2)


main(*sys.argv[1:])
