"""Fetches a file of examples from a hub or a store into the uploads folder: going on where it stopped, within its limits. No Django.

Nothing is opened here but to join the parts of one split. Which file it is, and whether it may be fetched, was decided before.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from studio import outgoing
from studio.errors import UserError
from studio.resuming import Rest, TooShort, size_of, wait
from studio.storage import remove_folder
from studio.training.job import Job
from studio.training.orders import FetchPayload, Remote

TOKEN = "ADAPTER_STUDIO_FETCH_TOKEN"
"""The variable that holds the hub's token: it stands in no file of the order."""
TRIES = 4
"""Failures in a row, with not one byte between them, before it is given up."""
WAIT = 2.0
"""Seconds before the second try; as many more before each further one."""
READ = 1 << 20
PASSING = (408, 425, 429)
BROKEN = (httpx.TransportError, TooShort)


class Unready(Exception):
    """The other side says that it may work later."""


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves the file at `payload["target"]`; returns its sha256 and size."""
    order = FetchPayload.model_validate(payload)
    target, parts = Path(order.target), Path(f"{order.target}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    job.phase("downloading", f"Fetching {order.name[:80]}")
    Fetch(order, job).everything(parts)
    job.phase("checking", "Comparing with what was announced")
    found = [compared(parts / str(number), remote, job) for number, remote in enumerate(order.files)]
    if len(found) == 1:
        (parts / "0").replace(target)
        digest = found[0]
    else:
        digest = joined([parts / str(number) for number in range(len(found))], target, how=order.join, job=job)
    remove_folder(parts)
    return {"sha256": digest, "bytes": target.stat().st_size}


class Fetch:
    def __init__(self, order: FetchPayload, job: Job):
        self.order, self.job = order, job
        self.client = outgoing.client(private=order.private)
        self.total = sum(remote.size for remote in order.files)

    def everything(self, folder: Path) -> None:
        before = 0
        with self.client:
            for number, remote in enumerate(self.order.files):
                part = folder / str(number)
                report = partial(self._report, before)
                self._patiently(Rest(partial(self._open, remote), part, size=remote.size, report=report), part)
                before += remote.size
                self.job.progress(before, self.total, "bytes")

    def _report(self, before: int, done: int) -> None:
        self.job.raise_if_stopped()
        self.job.progress(before + done, self.total, "bytes")

    def _patiently(self, fetch: Callable[[], None], part: Path) -> None:
        failures, had = 0, -1
        while True:
            try:
                fetch()
                return
            except (*BROKEN, Unready) as error:
                failures = failures + 1 if size_of(part) <= had else 1
                had = size_of(part)
                if failures == TRIES:
                    raise UserError(
                        f"{self.order.place} could not be reached, or the connection broke ({type(error).__name__}). "
                        "Fetch the file again later: what was downloaded is kept for a week."
                    ) from error
                wait(self.job, WAIT * failures, broke=f"The connection broke ({type(error).__name__})")

    @contextmanager
    def _open(self, remote: Remote, headers: dict[str, str]) -> Iterator[httpx.Response]:
        token = os.environ.get(TOKEN, "")
        sent = {**headers, **remote.headers, **({"Authorization": f"Bearer {token}"} if token and remote.signs_in else {})}
        with self.client.stream("GET", remote.url, headers=sent) as response:
            self._refuse(response.status_code)
            yield response

    def _refuse(self, status: int) -> None:
        place = self.order.place
        if status < 300:
            return
        if status >= 500 or status in PASSING:
            raise Unready(str(status))
        if status == 412:
            raise UserError("The file was changed while it was fetched. Fetch it again.")
        if status in (401, 403):
            raise UserError(f"{place} refused the file ({status}). Look at the key of the connection, and at what it may read.")
        raise UserError(f"{place} has no such file any more ({status}). Look for it again.")


def compared(part: Path, remote: Remote, job: Job) -> str:
    """The file's SHA-256. Raises UserError where it is not what was announced."""
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while piece := file.read(READ):
            job.raise_if_stopped()
            digest.update(piece)
    if remote.sha256 and digest.hexdigest() != remote.sha256:
        part.unlink()
        raise UserError("What arrived is not what was announced: its SHA-256 differs. It was thrown away; fetch it again.")
    return digest.hexdigest()


def joined(parts: list[Path], target: Path, *, how: str, job: Job) -> str:
    """The parts of one split as one file: bytes behind each other, or the row groups of Parquet files; returns its SHA-256."""
    job.phase("saving", "Joining the parts")
    temporary = Path(f"{target}.joined")
    if how == "parquet":
        join_parquet(parts, temporary, job=job)
    else:
        with temporary.open("wb") as out:
            for part in parts:
                append(part, out, ends_lines=how == "lines", job=job)
    temporary.replace(target)
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while piece := file.read(READ):
            digest.update(piece)
    return digest.hexdigest()


def append(part: Path, out: Any, *, ends_lines: bool, job: Job) -> None:
    last = b"\n"
    with part.open("rb") as file:
        while piece := file.read(READ):
            job.raise_if_stopped()
            out.write(piece)
            last = piece[-1:]
    if ends_lines and last != b"\n":
        out.write(b"\n")


def join_parquet(parts: list[Path], target: Path, *, job: Job) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(parts[0])
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for part in parts:
                file = pq.ParquetFile(part)
                for batch in file.iter_batches(1000):
                    job.raise_if_stopped()
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"The parts do not fit together ({str(error)[:200]}). Fetch one of them alone.") from error
