"""What lies below DATA_DIR that no row names by a path of its own: listed once, and then found by the ids that stand in names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from django.conf import settings

SERVED = 16
"""Hex digits of a folder's hash by which the files are named that llama.cpp serves it from (`studio.ml.gguf.serving`)."""
HASH = re.compile(rf"(?<![0-9a-f])[0-9a-f]{{{SERVED}}}(?![0-9a-f])")
UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
BEGINNING = re.compile(r"([0-9a-f]{8})(?:_[a-z]+)?(?:\.(?:db|lock|parquet)[\w-]*)?$")
"""How a name ends that has the beginning of an id: the folder of a run or a project, or Trackio's files of a project."""
SHARED_FOLDERS = {"base_models", "downloads"}
"""What belongs to the workspace, however it is named."""
Found = dict[str, list[Path]]


def below(*parts: str) -> Path:
    return Path(settings.DATA_DIR, *parts)


class Disk:
    """As it was when each part of it was first asked for."""

    @cached_property
    def artifacts(self) -> Found:
        """What orders sealed, by the order's id, also where one was lost before it could say so."""
        return by_key((path.name[:36], path) for path in below("artifacts").glob("*-*"))

    @cached_property
    def served(self) -> Found:
        """By the beginnings of the hashes of what they were made of, in the folder of each workspace."""
        return by_key((key, path) for path in below("cache", "serving").rglob("*") for key in HASH.findall(path.name))

    @cached_property
    def tracked(self) -> Found:
        """What trackers on this machine keep, by the id of a run or by the beginning of the id of a run or a project."""
        top = below("trackers")
        named = ((key, path) for path in (*top.glob("*/*"), *top.glob("*/*/*")) for key in keys(path.name))
        runs = below("trackers", "mlflow")
        marks = (*runs.glob("*/*/tags/adapter_studio_run"), *runs.glob(".trash/*/*/tags/adapter_studio_run"))
        return by_key((*named, *((mark.read_text(errors="replace").strip(), mark.parent.parent) for mark in marks)))

    def naming(self, ids: Iterable[str]) -> Iterator[Path]:
        """Whatever has one of these ids in its name, in whichever folder that is not the workspace's."""
        for pk in ids:
            yield from self.named.get(pk.replace("-", ""), ())

    @cached_property
    def named(self) -> Found:
        tops = [top for top in below().iterdir() if top.name not in SHARED_FOLDERS and top.is_dir() and not top.is_symlink()]
        paths = (path for top in tops for path in (*top.glob("*"), *top.glob("*/*")))
        return by_key((found.replace("-", ""), path) for path in paths for found in UUID.findall(path.name))


def keys(name: str) -> list[str]:
    """The ids that stand in the name of what a tracker keeps; else how an id begins, where the name ends with that."""
    if whole := UUID.findall(name):
        return [each.replace("-", "") for each in whole]
    return [found[1]] if (found := BEGINNING.search(name)) else []


def by_key(pairs: Iterable[tuple[str, Path]]) -> Found:
    found: Found = defaultdict(list)
    for key, path in pairs:
        found[key].append(path)
    return found
