"""Runs one order in a worker process: starts it, stores what it reports, and never outlives or loses it.

Knows nothing of what the order does; the kinds do.
"""

import hashlib
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
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
from studio.orders import services, strays
from studio.orders.kinds import KINDS, OrderKind
from studio.orders.logfile import LogFile
from studio.orders.models import Event, Order
from studio.orders.outofmemory import MemoryWatch
from studio.orders.results import Untrue, checked
from studio.orders.room import make_room
from studio.orders.trackers import Trackers
from studio.storage import remove_folder
from studio.training.orders import Event as Line
from studio.training.orders import Order as OrderFile
from studio.worker.events import LONGEST_NAME, Allowance, clean_json
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
MAX_EVENTS, MAX_BYTES = 250_000, 256 << 20
"""Events, and bytes of them, that one order stores; from there on one in TRICKLE seconds. Its bars and last figures go on."""
TRICKLE = 20.0
QUIET = 300.0
"""Seconds without an event after which the run says that nothing was heard."""
SILENCE = 2 * 3600.0
"""Seconds without an event or a word in the log after which a process is taken for hanging, and is ended."""
STILL_WRITES, NOT_A_WORD = "Its log still grows.", "Its log does not grow either, so it may hang: look at it, or stop the run."
OUT_OF_MEMORY = "The worker ran out of memory, so the system ended the process. Try a smaller batch size or max length."
TOO_MANY = "It reports more than is kept: {:,} events. It goes on, and its last figures are shown as they come."
MAX_REMARKS = 5
"""How often the supervisor says the same."""
LEAST_FREE = 256 << 20
"""Bytes that must be left on the disk: where it is full, the database and every other run stand still as well."""
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
    # Where memory is to stay flat, threads share what they have freed.
    limit = {"ADAPTER_STUDIO_MEMORY_LIMIT": str(kind.memory_limit), "MALLOC_ARENA_MAX": "2"} if kind.memory_limit else {}
    path = os.pathsep.join(part for part in (str(settings.ROOT), kept.get("PYTHONPATH", "")) if part)  # it starts in another folder
    return kept | training_environment() | limit | shared_memory() | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def shared_memory() -> dict[str, str]:
    """What builds need to agree on memory: how much it is, and a folder of this machine, which the data folder may share with others."""
    studio = hashlib.sha256(bytes(settings.DATA_DIR)).hexdigest()[:16]
    ledger = Path(tempfile.gettempdir(), f"adapter-studio-{os.geteuid()}-{studio}")
    return {"ADAPTER_STUDIO_BUILD_MEMORY": str(settings.BUILD_MEMORY), "ADAPTER_STUDIO_BUILD_LEDGER": str(ledger)}


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
        self.ended_for: str | None = None
        """Why the supervisor ended the process itself, as a sentence."""
        self.lost = False
        self.memory = MemoryWatch()
        self.heard = order.last_seq
        self.words: LogFile | None = None
        self.heard_at = time.monotonic()
        self.said_at = (self.heard_at, 0)
        self.remarked: dict[str, int] = {}
        self.told_of_silence = False
        self.events = Allowance(max(1, MAX_EVENTS - order.last_seq), 1 / TRICKLE)
        self.bytes = Allowance(MAX_BYTES, MAX_EVENT / TRICKLE)

    def run(self) -> None:
        try:
            path = write_order(self.order)
        except UserError as error:
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=error.message)
            return
        # An attempt whose worker was killed may have left processes that hold a device.
        strays.end_strays(self.order.pk, attempts=range(1, self.order.attempt))
        if need := self.kind.memory(self.order):
            make_room(need, say=self.tell, go_on=self.is_wanted)
            if self.lost:
                return
        child = subprocess.Popen(
            [sys.executable, "-m", "studio.worker", str(path)],
            cwd=self.order.folder,
            env=child_environment(self.kind)
            | self.kind.secrets(self.order)
            | {strays.MARK: strays.mark(self.order.pk, self.order.attempt)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert child.stderr is not None
        words = self.words = LogFile(child.stderr.fileno(), self.order.log_file)
        words.start()
        trackers = Trackers(self.order, self.kind.tracked(self.order))
        try:
            self.listen(child)
        except SystemExit:  # this worker is told to end, and its server with it
            self.bury(child)  # nobody listens any more, so it saves its state and ends
            self.catch_up()
            services.release(self.order)
            raise
        finally:
            self.bury(child)
            words.join(timeout=EXIT_GRACE)  # a process that left the group may hold the pipe for longer
            for sentence in trackers.end():
                self.remark("trackers", sentence)
        if not self.lost:
            attempt = self.order.attempt  # the next one may begin as soon as this one has ended
            self.conclude(child.returncode)
            services.clear_away(self.order, upto=attempt)

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
            self.memory.look()
            if now - beaten_at >= HEARTBEAT:
                beaten_at = now
                if not self.beat(child):
                    return
                self.look(now)
            if self.stop_sent_at is not None and now - self.stop_sent_at > STOP_GRACE:
                self.ended_for = "It did not stop in time and was ended"
            if self.kind.time_limit and now - began_at > self.kind.time_limit:
                minutes = self.kind.time_limit / 60
                self.ended_for = f"It took longer than {minutes:.0f} minutes and was ended. Try a smaller file, or another model."
            if self.ended_for:
                log.warning("%s: %s", self.order, self.ended_for)
                return
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=EXIT_GRACE)
            return  # it has ended by itself
        self.ended_for = "It broke off its reports without a result, so it was ended. The log has its last words."

    def catch_up(self) -> None:
        """Stores what the process still wrote down when nobody listened: the next attempt goes on behind its last step."""
        file = self.order.folder / "events.jsonl"
        if not file.is_file():
            return
        with file.open("rb") as stream:
            begin = max(0, file.stat().st_size - MAX_LINE)
            stream.seek(begin)
            lines = stream.read(MAX_LINE).split(b"\n")
        self.store([line for line in lines[bool(begin) :] if line and b'"type":"end"' not in line])

    def look(self, now: float) -> None:
        """What the process does not say itself: that it says nothing, and that it fills the disk."""
        said = self.words.said if self.words else 0
        if said != self.said_at[1]:
            self.said_at = (now, said)
        if now - self.heard_at > QUIET and not self.told_of_silence and self.stop_sent_at is None:
            self.told_of_silence = True
            log_grows = now - self.said_at[0] < QUIET
            self.remark("silence", f"Nothing was heard for {minutes(QUIET)}. {STILL_WRITES if log_grows else NOT_A_WORD}")
        if now - max(self.heard_at, self.said_at[0]) > SILENCE:
            self.ended_for = f"Nothing was heard of it for {minutes(SILENCE)}, so it was ended. The log may show where it stood."
        elif shutil.disk_usage(settings.DATA_DIR).free < LEAST_FREE:
            self.ended_for = f"Less than {LEAST_FREE >> 20} MB were left on the disk, so it was ended. Free some space, then start again."

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
        """Writes the events and what follows from them, then rings. Repeats and strangers change nothing."""
        events, kept = [], []
        for line in lines:
            event = self.read(line)
            if event is None:
                continue
            if event.type == "end":
                self.end = event.model_extra or {}
                break  # whatever else is said comes too late
            events.append(event)
            if self.events.take() and self.bytes.take(len(line)):
                kept.append(event)
        if events:
            self.heard_at, self.told_of_silence = time.monotonic(), False
            self.keep(events, kept)
        if len(kept) < len(events) and "flood" not in self.remarked:
            self.remark("flood", TOO_MANY.format(MAX_EVENTS))

    def keep(self, events: list[Line], kept: list[Line]) -> None:
        """Moves the row as all `events` say, and stores those of them that are `kept`.

        The numbers are given here: where a line is lost or forged, they still have no gap.
        """
        first = self.order.last_seq + 1
        self.order.last_seq += len(kept)
        with transaction.atomic():
            if not services.held(self.order).update(**self.changes(events)):
                self.lost = True
                return
            Event.objects.bulk_create(
                Event(order=self.order, seq=seq, attempt=self.order.attempt, at=event.at, type=event.type, body=event.model_extra or {})
                for seq, event in enumerate(kept, first)
            )
        services.notify(self.order)

    def remark(self, about: str, text: str) -> None:
        """A note of the supervisor's own; of each kind at most MAX_REMARKS."""
        self.remarked[about] = self.remarked.get(about, 0) + 1
        if self.remarked[about] <= MAX_REMARKS:
            self.tell(text, "warning")

    def tell(self, text: str, level: str) -> None:
        """A note for whoever looks at the order."""
        if not self.lost:
            note = Line(seq=0, attempt=self.order.attempt, type="note", text=text, level=level)  # type: ignore[call-arg]
            self.keep([note], [note])

    def is_wanted(self) -> bool:
        """Beats while there is no process yet; False once nobody waits for it."""
        self.lost = not services.held(self.order).update(heartbeat_at=timezone.now())
        return not self.lost and not services.held(self.order).filter(stop_requested_at__isnull=False).exists()

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
            self.remark("size", f"A report of {len(line)} bytes is too large to be shown, and was left out.")
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
        new = {name: value for name, value in metrics.items() if name not in latest and len(name) <= LONGEST_NAME}
        latest.update(known)
        latest.update(list(new.items())[: MAX_METRICS - len(latest)])

    def bury(self, child: "subprocess.Popen[bytes]") -> None:
        """Leaves no process behind: what still runs has had its time, or is not ours any more."""
        if child.stdout:
            child.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0 if self.lost or self.ended_for else EXIT_GRACE)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also what the process itself started
        child.wait()
        if count := strays.end_strays(self.order.pk, attempts=range(self.order.attempt, self.order.attempt + 1)):
            log.info("%s left %d processes that had gone their own way; they were ended.", self.order, count)

    def conclude(self, returncode: int) -> None:
        """Success is a committed result that was reported, never an exit code."""
        self.order.refresh_from_db(fields=["discard"])
        if self.end is not None and self.end.get("status") in ENDS:
            self.record(status=str(self.end["status"]), result=self.end.get("result") or {}, error=str(self.end.get("error") or ""))
        elif self.ended_for and self.stop_sent_at is not None:
            kept = "nothing was kept" if self.order.saved_step is None else f"what it learnt until step {self.order.saved_step} is kept"
            sentence = f"It did not stop in time and was ended; {kept}."
            services.finish(self.order, status=Order.Status.STOPPED, result=None, error=sentence)
        elif self.ended_for:
            services.finish(self.order, status=Order.Status.FAILED, result=None, error=self.ended_for)
        elif self.stop_sent_at is not None and returncode == -signal.SIGTERM:  # asked before it had begun to listen
            services.finish(self.order, status=Order.Status.STOPPED, result=None, error="")
        elif self.memory.ended_it(returncode):
            facts = {"code": "out_of_memory", "step": self.order.latest.get("step", 0)}
            services.finish(self.order, status=Order.Status.FAILED, result=facts, error=OUT_OF_MEMORY)
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


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def died(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return "Something else ended the process (signal 9); memory was not full shortly before. The log has its last words."
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
