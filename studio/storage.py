"""Folders that are either whole or not there: sealed by a manifest, made visible by one rename. No Django."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Every regular file below `folder` except its manifest, sorted by relative path. Links are refused."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path.relative_to(folder)} is a link")
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST:
            found.append(path)
    return found


def fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_of(files: Mapping[str, Mapping[str, object]]) -> str:
    """The hex SHA-256 of files together, given as `{name: {"sha256": ...}}`: of their `sha256  name` lines, sorted by name."""
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def commit_folder(temp: Path, target: Path, **facts: object) -> dict[str, object]:
    """Seals `temp` and renames it to `target` on the same file system; returns the manifest.

    The manifest holds `files` (`{name: {sha256, size}}`), `size` (bytes), `sha256` (of the sorted
    `sha256  name` lines, so two folders with the same files have the same hash) and `facts`.
    Raises FileExistsError when `target` is there already: a sealed folder is never replaced.
    """
    if target.exists():
        raise FileExistsError(target)
    files: dict[str, dict[str, object]] = {}
    for path in files_in(temp):
        files[path.relative_to(temp).as_posix()] = {"sha256": sha256_file(path), "size": path.stat().st_size}
        fsync_path(path)
    manifest: dict[str, object] = {
        "files": files,
        "size": sum(int(str(entry["size"])) for entry in files.values()),
        "sha256": hash_of(files),
        "facts": facts,
    }
    (temp / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    fsync_path(temp / MANIFEST)
    fsync_path(temp)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(temp, target)
    fsync_path(target.parent)
    return manifest


def read_manifest(folder: Path) -> dict[str, object]:
    """The manifest of a sealed folder. Raises FileNotFoundError where it was never sealed."""
    manifest: dict[str, object] = json.loads((folder / MANIFEST).read_text())
    return manifest


def sealed_sha256(path: Path) -> str:
    """What a sealed folder, a folder in one, or a file in one is known by. Raises FileNotFoundError where it was never sealed."""
    if (path / MANIFEST).exists():
        return str(read_manifest(path)["sha256"])
    for folder in path.parents[:2]:
        if not (folder / MANIFEST).exists():
            continue
        files: Any = read_manifest(folder)["files"]
        name = path.relative_to(folder).as_posix()
        if name in files:
            return str(files[name]["sha256"])
        if part := {each.removeprefix(f"{name}/"): entry for each, entry in files.items() if each.startswith(f"{name}/")}:
            return hash_of(part)
    raise FileNotFoundError(path)


def is_whole(folder: Path) -> bool:
    """True where a sealed folder still holds exactly the files that its manifest names, byte for byte."""
    try:
        files: Any = read_manifest(folder)["files"]
        if {path.relative_to(folder).as_posix() for path in files_in(folder)} != set(files):
            return False
        return all(sha256_file(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a manifest that is damaged itself
        return False


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it; of a link or a file in its place that alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
