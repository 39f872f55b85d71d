"""What a worker process says that it left, held against what stands on the disk. The process itself is not believed."""

import json
from pathlib import Path
from typing import Any

from studio.storage import MANIFEST, files_in, hash_of

LARGEST_MANIFEST = 16 << 20


class Untrue(Exception):
    """The result is not what was said of it."""


def checked(result: dict[str, Any], *, target: Path) -> dict[str, Any]:
    """The result with the folder, files, size and hash of the sealed folder at `target`. One without a folder stays as it is.

    Names, sizes and the folder's own hash are compared. The files' hashes are taken from the manifest: reading gigabytes again
    would tell nothing that the process, which wrote both, could not have arranged.
    """
    if "folder" not in result:
        return result
    if result["folder"] != str(target):
        raise Untrue("it names another folder than the one it was given")
    manifest = sealed_manifest(target)
    files = manifest["files"]
    if manifest["sha256"] != hash_of(files):
        raise Untrue("its hash is not that of its files")
    found = {path.relative_to(target).as_posix(): path.stat().st_size for path in files_in(target)}
    if found != {name: entry["size"] for name, entry in files.items()}:
        raise Untrue("its files are not those that were sealed")
    if strange := next((name for name in found if not name.isprintable() or "\\" in name), None):
        raise Untrue(f"a file cannot be called {strange[:80]!r}")
    return result | {"folder": str(target), "files": files, "size": sum(found.values()), "sha256": manifest["sha256"]}


def sealed_manifest(target: Path) -> dict[str, Any]:
    path = target / MANIFEST
    if target.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_MANIFEST:
        raise Untrue("there is no sealed folder")
    manifest: dict[str, Any] = json.loads(path.read_bytes())
    return manifest
