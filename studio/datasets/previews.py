"""Has a stranger's file looked at in a process of its own, and hands on what was found. This process never opens it."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings

from studio.datasets import uploading
from studio.datasets.models import Upload
from studio.datasets.peeking import WRITTEN
from studio.errors import UserError

log = logging.getLogger("studio.datasets")
PATIENCE = 15.0
"""Seconds after which a look is ended."""
LARGEST = 8 << 20
"""Bytes of an answer."""
AT_ONCE = 2
"""Looks that this process has going on; others wait for their turn."""
TURNS = threading.BoundedSemaphore(AT_ONCE)
UNSHOWN = "The beginning of the file cannot be shown. Import it all the same to learn what is wrong with it."


def preview(upload: Upload, *, mapping: dict[str, str] | None = None, reading: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `peeking.Peek.as_dict` says. Raises UserError where the file cannot be read, or the choices do not fit."""
    request = {"file": str(upload.path), "filename": upload.filename, "mapping": mapping or {}, **(reading or {})}
    if not upload.path.is_file():
        raise UserError(uploading.GONE, code="gone")
    if not TURNS.acquire(timeout=PATIENCE):
        raise UserError("The server is busy looking at other files. Try again in a moment.")
    try:
        found = looked_at(request)
    finally:
        TURNS.release()
    if (error := found.get("error")) is not None:
        raise UserError(error["message"], code=error["code"], fields=error.get("fields"), facts=error.get("facts"))
    return found


def looked_at(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="look-", dir=made(Path(settings.DATA_DIR, "tmp"))) as folder:
        place = Path(folder, "answer.json")
        body = json.dumps(request | {"work": folder}).encode()
        with place.open("wb") as out, Path(folder, "request.json").open("w+b") as asked:
            asked.write(body)
            asked.seek(0)
            child = subprocess.Popen(
                [sys.executable, "-m", "studio.datasets.peeking"],
                stdin=asked,
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment(),
                process_group=0,
            )
            try:
                code = child.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise UserError("Looking at the file took too long. Import it all the same: there it has more time.") from None
            finally:
                child.kill()
                child.wait()
        if code != 0 or place.stat().st_size > min(LARGEST, WRITTEN):
            log.warning("A look at %s ended with %d.", request["file"], code)
            raise UserError(UNSHOWN, code="unshown")
        found: dict[str, Any] = orjson.loads(place.read_bytes())
        return found


def environment() -> dict[str, str]:
    """No key, no database, no home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if name in os.environ}
    path = os.pathsep.join(part for part in (str(settings.ROOT), os.environ.get("PYTHONPATH", "")) if part)
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | quiet | {"PYTHONPATH": path}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
