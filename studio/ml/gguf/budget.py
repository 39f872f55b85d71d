"""How builds share the memory of one machine: each reserves what it needs before it takes it, and waits its turn where too little is left.

The ledger is a folder with one file for each build that waits or works, held by a lock of the kernel's. Whatever ends a process frees its
lock, and with it its share; nobody has to tidy up. No torch, no Django.
"""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from studio.errors import UserError
from studio.training.job import Job
from studio.worker.host import memory_size

LIMIT = "ADAPTER_STUDIO_BUILD_MEMORY"
"""Variable with the bytes that all builds of this machine may take together; 0 or none takes half of the machine's."""
LEDGER = "ADAPTER_STUDIO_BUILD_LEDGER"
"""Variable with the ledger's folder, on this machine and of one studio alone."""
LOOK_EVERY = 0.25
"""Seconds between two looks at the ledger."""
SPEAK_EVERY = 60.0
"""Seconds after which a build that waits says so again: one that says nothing is taken for hanging."""


def limit() -> int:
    """Bytes that builds may take together."""
    return int(os.environ.get(LIMIT) or 0) or memory_size() // 2


def ledger() -> Path:
    """The folder in which builds find each other."""
    return Path(os.environ.get(LEDGER) or Path(tempfile.gettempdir(), f"adapter-studio-builds-{os.geteuid()}"))


@contextmanager
def reserved(need: int, *, job: Job, limit: int, folder: Path) -> Iterator[None]:
    """Holds `need` bytes of the `limit` that all in `folder` share, once it is this one's turn: first come, first served.

    A small one does not overtake a large one that came before, which would else wait for ever. One that needs more than the limit has it
    to itself. Raises Stopped where a stop is asked for while it waits, and UserError for a folder of somebody else's.
    """
    make_private(folder)
    mine = _draw(folder, need)
    try:
        _wait(mine, job=job, limit=limit)
        yield
    finally:
        mine.path.unlink(missing_ok=True)
        os.close(mine.file)


def make_private(folder: Path) -> None:
    """Makes the ledger for its owner alone; refuses one that somebody else put there, which a temporary folder allows."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise UserError(
            f"{folder} is a link, or others may write into it, so builds cannot agree on memory in it. Remove it, then try again."
        )


@dataclass(frozen=True)
class Ticket:
    """One build's place in the ledger. Its file is locked for as long as the process lives, and numbered by arrival."""

    path: Path
    file: int
    need: int

    def says(self, *, holds: bool) -> None:
        """Writes down whether it waits or holds. Only while the folder is locked."""
        content = json.dumps({"need": self.need, "holds": holds}).encode()
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, content, 0)


@dataclass(frozen=True)
class Others:
    """The other builds in the ledger, as one that waits sees them."""

    held: list[int]
    """Bytes of each that holds some."""
    before: int
    """How many wait that came earlier."""

    def leave(self, need: int, *, limit: int) -> bool:
        return not self.before and (not self.held or sum(self.held) + need <= limit)


def _draw(folder: Path, need: int) -> Ticket:
    """The next ticket. Nobody sees it before it is locked and written."""
    with _locked(folder):
        number = max((int(path.name) for path in _tickets(folder)), default=0) + 1
        path = folder / f"{number:012d}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ticket = Ticket(path, file, need)
        ticket.says(holds=False)
    return ticket


def _wait(mine: Ticket, *, job: Job, limit: int) -> None:
    said, said_at = "", 0.0
    while True:
        with _locked(mine.path.parent):
            others = _others(mine)
            if others.leave(mine.need, limit=limit):
                mine.says(holds=True)
                return
        sentence = _sentence(mine.need, others, limit=limit)
        if sentence != said or time.monotonic() - said_at > SPEAK_EVERY:
            said, said_at = sentence, time.monotonic()
            job.phase("preparing", sentence)
        job.raise_if_stopped()
        time.sleep(LOOK_EVERY)


def _sentence(need: int, others: Others, *, limit: int) -> str:
    """Names nobody: other builds may be other people's."""
    reason = f"{min(need, limit) / 1e9:.1f} GB are needed, and other builds hold {sum(others.held) / 1e9:.1f} of {limit / 1e9:.1f} GB"
    turn = f"; {others.before} came before" if others.before else ""
    return f"Waiting for memory: {reason}{turn}"


def _others(mine: Ticket) -> Others:
    """Reads every other ticket; one whose lock is free is a dead process's, and is thrown away."""
    held, before = [], 0
    for path in _tickets(mine.path.parent):
        if path == mine.path or (said := _read(path)) is None:
            continue
        if said["holds"]:
            held.append(int(said["need"]))
        elif path.name < mine.path.name:
            before += 1
    return Others(held, before)


def _read(path: Path) -> dict[str, int] | None:
    """What a living process's ticket says; None for a dead one's."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # it has just been given back
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said: dict[str, int] = json.loads(os.pread(file, 4096, 0))
        return said
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(file)


def _tickets(folder: Path) -> list[Path]:
    """In the order of arrival."""
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks at the ledger and writes into it; each for some milliseconds."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
