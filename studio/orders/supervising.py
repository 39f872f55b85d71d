"""Runs one order in a worker process: starts it, stores what it reports, and never outlives or loses it.

Knows nothing of what the order does; the kinds do.
"""

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Case, Value, When
from django.utils import timezone
from pydantic import ValidationError

from studio.errors import UserError
from studio.orders import services
from studio.orders.kinds import KINDS, OrderKind
from studio.orders.logfile import LogFile
from studio.orders.models import Event, Order
from studio.orders.results import Untrue, checked
from studio.storage import remove_folder
from studio.training.orders import Event as Line
from studio.training.orders import Order as OrderFile
from studio.worker.events import clean_json
from studio.worker.host import training_environment

log = logging.getLogger("studio.orders")
HEARTBEAT = 2.0
STOP_GRACE = 60.0
"""Seconds that a stop may take: what was learnt is saved in them."""
EXIT_GRACE = 5.0
"""Seconds in which a process ends that has nothing more to say."""
MAX_LINE = 4 << 20
MAX_EVENT = 256 << 10
"""Bytes of a line that is not the last one: a metric, a sample or a note is stored and sent to every page."""
MAX_METRICS = 200
"""Names of metrics whose last value is kept with the order."""
ENDS = (Order.Status.SUCCEEDED, Order.Status.FAILED, Order.Status.STOPPED, Order.Status.PAUSED)
CLOCKS_APART = timedelta(hours=1)
BATCH = 0.05
"""Seconds over which events are gathered before they are stored together."""

# The child needs a path, a home and its devices; no key, no database, no queue. Its kind may ask for more.
KEPT_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
)
KEPT_PREFIXES = ("OMP_", "GOMP_", "MKL_", "OPENBLAS_", "NVIDIA_", "CUDA_", "HF_HOME", "HF_HUB_", "ADAPTER_STUDIO_")


def child_environment(kind: OrderKind) -> dict[str, str]:
    prefixes = (*KEPT_PREFIXES, *kind.environment)
    kept = {name: value for name, value in os.environ.items() if name in KEPT_ENVIRONMENT or name.startswith(prefixes)}
    limit = {"ADAPTER_STUDIO_MEMORY_LIMIT": str(kind.memory_limit)} if kind.memory_limit else {}
    return kept | training_environment() | limit | {"PYTHONUNBUFFERED": "1"}


def write_order(order: Order) -> Path:
    """order.json in the attempt's folder, and nothing else in it."""
    kind, folder = KINDS[order.kind], order.folder
    remove_folder(folder)
    for target in targets(order):
        remove_folder(target)  # sealed by an attempt that was lost before it could say so
    folder.mkdir(parents=True, mode=0o700)
    file = OrderFile(
        id=str(order.pk),
        kind=order.kind,  # type: ignore[arg-type]
        attempt=order.attempt,
        first_seq=order.last_seq + 1,
        folder=str(folder),
        target=str(kind.target(order)),
        payload=kind.payload(order),
    )
    path = folder / "order.json"
    path.write_text(file.model_dump_json(indent=1))
    return path


def targets(order: Order) -> Iterator[Path]:
    """Where this attempt and those before it were to leave a result."""
    for attempt in range(1, order.attempt + 1):
        earlier = copy(order)
        earlier.attempt = attempt
        yield KINDS[order.kind].target(earlier)


class Supervisor:
    """One worker process and the row that stands for it."""

    def __init__(self, order: Order):
        self.order = order
        self.kind = KINDS[order.kind]
        self.end: dict[str, Any] | None = None
        self.stop_sent_at: float | None = None
        self.overdue = False
        self.too_long = False
        self.lost = False
        self.heard = order.last_seq

    def run(self) -> None:
        try:
            path = write_order(self.order)
        except UserError as error:
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=error.message)
            return
        child = subprocess.Popen(
            [sys.executable, "-m", "studio.worker", str(path)],
            cwd=settings.ROOT,
            env=child_environment(self.kind),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert child.stderr is not None
        words = LogFile(child.stderr.fileno(), self.order.log_file)
        words.start()
        try:
            self.listen(child)
        except SystemExit:  # this worker is told to end, and its server with it
            services.release(self.order)
            raise
        finally:
            self.bury(child)
            words.join(timeout=EXIT_GRACE)  # a process that left the group may hold the pipe for longer
        if not self.lost:
            self.conclude(child.returncode)
            services.clear_away(self.order)

    def listen(self, child: "subprocess.Popen[bytes]") -> None:
        """Stores events as they come, beats, and passes a stop on, until the last event or the end of the process."""
        beaten_at, began_at = 0.0, time.monotonic()
        for lines in batches(child):
            if lines:
                self.store(lines)
            if self.end is not None or self.lost:
                return
            if not lines and child.poll() is not None:
                return  # what it started itself may still hold the pipe
            now = time.monotonic()
            if now - beaten_at >= HEARTBEAT:
                beaten_at = now
                if not self.beat(child):
                    return
            if self.stop_sent_at is not None and now - self.stop_sent_at > STOP_GRACE:
                log.warning("%s did not stop in %d s and is killed.", self.order, STOP_GRACE)
                self.overdue = True
                return
            if self.kind.time_limit and now - began_at > self.kind.time_limit:
                self.too_long = True
                return

    def beat(self, child: "subprocess.Popen[bytes]") -> bool:
        """False once another attempt holds the order: this process is late and must end."""
        if not services.held(self.order).update(heartbeat_at=timezone.now()):
            self.lost = True
            return False
        asked = services.held(self.order).filter(stop_requested_at__isnull=False).values_list("pausing", flat=True).first()
        if self.stop_sent_at is None and asked is not None:
            self.stop_sent_at = time.monotonic()
            if asked:
                (self.order.folder / "pause").touch()  # before the stop, which the process may notice at once
            (self.order.folder / "stop").touch()
            child.send_signal(signal.SIGTERM)
        return True

    def store(self, lines: list[bytes]) -> None:
        """Writes the events and what follows from them, then rings. Repeats and strangers change nothing.

        The numbers are given here: where a line is lost or forged, they still have no gap.
        """
        events = []
        for line in lines:
            event = self.read(line)
            if event is None:
                continue
            if event.type == "end":
                self.end = event.model_extra or {}
                break  # whatever else is said comes too late
            events.append(event)
        if not events:
            return
        first = self.order.last_seq + 1
        self.order.last_seq += len(events)
        with transaction.atomic():
            if not services.held(self.order).update(**self.changes(events)):
                self.lost = True
                return
            Event.objects.bulk_create(
                Event(order=self.order, seq=seq, attempt=self.order.attempt, at=event.at, type=event.type, body=event.model_extra or {})
                for seq, event in enumerate(events, first)
            )
        services.notify(self.order)

    def read(self, line: bytes) -> Line | None:
        """The event of a line; None for one that is no event of this attempt, or has been heard before.

        What it holds is made fit for a database here, as the process should have done: no NaN, no NUL, no time of another age.
        """
        try:
            event = Line.model_validate_json(line)
        except ValidationError:
            log.warning("%s sent a line that is no event.", self.order)
            return None
        if event.attempt != self.order.attempt or event.seq <= self.heard:
            return None
        if len(line) > MAX_EVENT and event.type != "end":
            log.warning("%s sent an event of %d bytes, which is left out.", self.order, len(line))
            return None
        self.heard = event.seq
        now = timezone.now()
        at = event.at if event.at.tzinfo and abs(event.at - now) < CLOCKS_APART else now
        return Line(seq=event.seq, attempt=event.attempt, at=at, type=event.type, **clean_json(event.model_extra or {}))

    def changes(self, events: list[Line]) -> dict[str, Any]:
        """The columns of the order that these events move."""
        order = self.order
        columns: dict[str, Any] = {"last_seq": order.last_seq}
        for event in events:
            body = event.model_extra or {}
            if event.type == "phase":
                saving = body.get("name") == "saving" and order.kind == "train"
                working = Value(Order.Status.FINISHING if saving else Order.Status.RUNNING)
                columns["status"] = Case(When(pausing=True, then=Value(Order.Status.PAUSING)), default=working)
                columns["phase"], columns["phase_text"] = str(body.get("name", ""))[:20], str(body.get("text", ""))[:300]
            elif event.type == "progress":
                columns |= {"done": number(body.get("done")), "total": number(body.get("total")), "unit": str(body.get("unit", ""))[:20]}
            elif event.type == "metric":
                self.remember({name: value for name, value in body.items() if value is not None})
                columns |= {"latest": order.latest, "done": number(body.get("step")), "total": number(body.get("total")), "unit": "steps"}
        return columns

    def remember(self, metrics: dict[str, Any]) -> None:
        """Keeps the last value of each metric; of those that come when there are very many already, none."""
        latest = self.order.latest
        known = {name: value for name, value in metrics.items() if name in latest}
        new = {name: value for name, value in metrics.items() if name not in latest}
        latest.update(known)
        latest.update(list(new.items())[: MAX_METRICS - len(latest)])

    def bury(self, child: "subprocess.Popen[bytes]") -> None:
        """Leaves no process behind: what still runs has had its time, or is not ours any more."""
        if child.stdout:
            child.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0 if self.lost or self.overdue or self.too_long else EXIT_GRACE)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also what the process itself started
        child.wait()

    def conclude(self, returncode: int) -> None:
        """Success is a committed result that was reported, never an exit code."""
        self.order.refresh_from_db(fields=["discard"])
        if self.end is not None and self.end.get("status") in ENDS:
            self.record(status=str(self.end["status"]), result=self.end.get("result") or {}, error=str(self.end.get("error") or ""))
        elif self.too_long:
            sentence = f"It took longer than {self.kind.time_limit / 60:.0f} minutes and was ended. Try a smaller file, or another model."
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=sentence)
        elif self.overdue:
            kept = "nothing was kept" if self.order.saved_step is None else f"what it learnt until step {self.order.saved_step} is kept"
            sentence = f"It did not stop in time and was ended; {kept}."
            services.finish(self.order, status=Order.Status.STOPPED, result=None, error=sentence)
        elif self.stop_sent_at is not None and returncode == -signal.SIGTERM:  # asked before it had begun to listen
            services.finish(self.order, status=Order.Status.STOPPED, result=None, error="")
        else:
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=died(returncode))

    def record(self, *, status: str, result: Any, error: str) -> None:
        """Ends the order as its process said. What cannot be recorded has failed: another attempt would leave the same."""
        try:
            if not isinstance(result, dict):
                raise Untrue("it is no result")
            left = checked(result, target=self.kind.target(self.order)) if result else None
            services.finish(self.order, status=status, result=left, error=error)
        except (OperationalError, InterfaceError):
            raise  # the database is away: nothing is wrong with the result
        except Exception as problem:  # a plugin's result can be wrong in any way
            log.exception("The result of %s cannot be recorded.", self.order)
            reason = problem.message if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
            sentence = f"What it left cannot be recorded ({reason[:300]}). The log of the server has the details."
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=sentence)


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def died(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return "The system ended the process (signal 9), most likely because memory ran out. Try a smaller batch size or max length."
    if returncode < 0:
        return f"The process crashed (signal {-returncode}). The log has its last words."
    return f"The process ended without a result (exit code {returncode}). The log has its last words."


def batches(child: "subprocess.Popen[bytes]") -> Iterator[list[bytes]]:
    """Whole lines from the process's pipe, gathered for BATCH seconds; an empty list where nothing came for half a second."""
    assert child.stdout is not None
    descriptor, rest = child.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=0.25):
                yield []
                continue
            time.sleep(BATCH)
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE:
                rest = b""
            yield [line for line in lines if line]
