"""Files that are being written, which appear whole under their names or not at all. What a killed process had finished is gone on from."""

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from studio.ml.gguf import journal
from studio.ml.gguf.planning import Layout
from studio.storage import fsync_path
from studio.training.job import Stopped

EVERY_BYTES = 256 << 20
EVERY_SECONDS = 5.0
"""How much of the work a kill may cost: what was written since is done again."""
POLL = 0.2
Stopping = Callable[[], bool] | None


class Unfinished:
    """The files of one build, and which of its items are done. `write` is safe from several threads, the rest is not."""

    def __init__(self, parts: Sequence[Path], *, record: Path | None = None, done: set[int] | None = None):
        self.done = done or set()
        """Items that an earlier process had finished."""
        self._parts = parts
        self._files: list[int] = []
        self._record = record
        self._fresh: list[int] = []
        self._bytes = 0
        self._since = time.monotonic()
        self._keeper = ThreadPoolExecutor(1) if record else None
        self._keeping: Future[None] | None = None
        for part in parts:
            self._files.append(os.open(part, os.O_RDWR | os.O_NOFOLLOW))

    def write(self, file: int, content: bytes | memoryview, offset: int) -> None:
        """Puts `content` into the file of that number."""
        view = memoryview(content).cast("B")
        while view:
            written = os.pwrite(self._files[file], view, offset)
            view, offset = view[written:], offset + written

    def finished(self, item: int, size: int) -> None:
        """Notes that an item of `size` bytes is written in all files. It counts once it is safe on the disk, some seconds later."""
        if self._keeper is None or self._record is None:
            return
        self._fresh.append(item)
        self._bytes += size
        if self._keeping is not None and not self._keeping.done():
            return
        if self._bytes >= EVERY_BYTES or time.monotonic() - self._since >= EVERY_SECONDS:
            self._keep()

    def flush(self) -> None:
        """Returns once all that was written is safe on the disk, and noted."""
        if self._keeper is None:
            self._sync()
            return
        self._keep()
        if self._keeping is not None:
            self._keeping.result()

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.shutdown()
        for file in self._files:
            os.close(file)
        self._files = []

    def publish(self, targets: Sequence[Path]) -> None:
        """Gives the files their names. They are safe on the disk, so a name never stands for half a file."""
        for part, target in zip(self._parts, targets, strict=True):
            if self._record is None:
                os.rename(part, target)
            else:
                _link(part, target)
        for folder in {target.parent for target in targets}:
            fsync_path(folder)

    def _keep(self) -> None:
        """Starts to make safe what was finished until now, in a thread of its own: the disk is slow, and the others go on meanwhile."""
        if self._keeping is not None:
            self._keeping.result()
        items, self._fresh, self._bytes, self._since = self._fresh, [], 0, time.monotonic()
        if self._keeper is not None and items:
            self._keeping = self._keeper.submit(self._note, items)

    def _note(self, items: list[int]) -> None:
        self._sync()
        assert self._record is not None
        journal.record(self._record, items)

    def _sync(self) -> None:
        for file in self._files:
            os.fsync(file)


@contextmanager
def beside(targets: Sequence[Path], layouts: Sequence[Layout]) -> Iterator[Unfinished]:
    """Files beside their targets, which are gone where the work does not end well."""
    parts = [target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part") for target in targets]
    try:
        _create(parts, layouts)
        work = Unfinished(parts)
        try:
            yield work
        finally:
            work.close()
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def kept(state: Path, layouts: Sequence[Layout], *, fingerprint: str, stopping: Stopping = None) -> Iterator[Unfinished]:
    """Files in the folder `state`, which stay there: after a kill, a stop or an error the next call goes on from what was finished.

    `fingerprint` names everything that decides their bytes; what another one left is thrown away. A finished build stays as well, so
    that a process that dies while it checks its files need not make them again. Waits while another process works in the folder.
    """
    state.mkdir(parents=True, exist_ok=True)
    record, parts = state / "journal", [state / f"{number}.part" for number in range(len(layouts))]
    with alone(state / "lock", stopping):
        done = journal.done(record, fingerprint=fingerprint) if _there(parts, layouts) else None
        if done is None:
            done = set()
            _begin(state, parts, layouts)
            journal.begin(record, fingerprint=fingerprint)
        work = Unfinished(parts, record=record, done=done)
        try:
            yield work
        except Stopped:
            work.flush()
            raise
        finally:
            work.close()


def _there(parts: Sequence[Path], layouts: Sequence[Layout]) -> bool:
    return all(part.is_file() and part.stat().st_size == layout.size for part, layout in zip(parts, layouts, strict=True))


def _begin(state: Path, parts: Sequence[Path], layouts: Sequence[Layout]) -> None:
    for left in (state / "journal", *state.glob("*.part")):
        left.unlink(missing_ok=True)
    _create(parts, layouts)
    for part in parts:
        fsync_path(part)


def _create(parts: Sequence[Path], layouts: Sequence[Layout]) -> None:
    """Files of their full size, with everything in them but the weights."""
    for part, layout in zip(parts, layouts, strict=True):
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.truncate(layout.size)
            file.write(layout.header)
            for offset, content in layout.small:
                file.seek(offset)
                file.write(content)


def _link(part: Path, target: Path) -> None:
    """One file under two names, where the file system can; else the file moves, or is copied to another disk."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        os.link(part, temporary)
    except OSError as error:
        if error.errno != errno.EXDEV:  # no hard links here
            os.rename(part, target)
            return
        with suppress(FileNotFoundError):
            temporary.unlink()
        shutil.copyfile(part, temporary)
        fsync_path(temporary)
    os.rename(temporary, target)


@contextmanager
def alone(path: Path, stopping: Stopping) -> Iterator[None]:
    """Holds a lock that ends with the process, whatever happens to it."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stopping is not None and stopping():
                    raise Stopped from None
                time.sleep(POLL)
        yield
