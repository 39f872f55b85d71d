"""Remakes constraints.txt, which pins every package that an installation brings: python3 scripts/lock.py python3.11 python3.13

The oldest and the newest supported interpreter each resolve the project afresh, without installing it. Where they come to
different versions, the file says which is for which Python.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = f"{ROOT}[gpu,ml,postgres,test,trackers]"
OLDEST = "3.11"
# Its builds differ by machine (2.13.0+cpu), and a patch release is as good.
BY_RANGE = {"torch"}
# torch pins its own CUDA packages exactly; on a machine without them they must not be asked for.
LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-|triton$")
HEAD = """\
# Made by scripts/lock.py; pins the whole tree, so that an installation next month is the same one.
# To take newer versions, run it again and then the tests.
"""


def resolve(python: str, *also: str) -> dict[str, str]:
    """Name and version of everything that pip would install for this interpreter, with the further requirements `also`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--prefer-binary", "--quiet", "--report", str(report)]
        subprocess.run([python, "-m", "pip", "install", *options, TARGET, *also], check=True, cwd=ROOT)
        found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {normal(entry["name"]): entry["version"] for entry in found if normal(entry["name"]) != "adapter-studio"}


def normal(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pin(name: str, version: str) -> str:
    release = version.partition("+")[0]
    return f"{name}=={'.'.join(release.split('.')[:2])}.*" if name in BY_RANGE else f"{name}=={release}"


def lines(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The pins, from what the oldest and the newest interpreter resolved to."""
    out = []
    for name in sorted(old.keys() | new.keys()):
        if LEFT_TO_TORCH.match(name):
            continue
        pins = [pin(name, tree[name]) for tree in (old, new) if name in tree]
        if len(set(pins)) == 1:
            out.append(pins[0])
        else:
            out += [f'{pins[0]} ; python_version == "{OLDEST}"', f'{pins[1]} ; python_version > "{OLDEST}"']
    return out


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(
            f"Name two interpreters, of Python {OLDEST} and of the newest one supported: python3 scripts/lock.py python3.11 python3.13"
        )
    old = resolve(sys.argv[1])
    new = resolve(sys.argv[2], *(pin(name, old[name]) for name in BY_RANGE))
    pins = lines(old, new)
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n")
    print(f"constraints.txt pins {len(pins)} packages.")


if __name__ == "__main__":
    main()
