"""The table of what `up` runs beside Redis: one line for each process. How they are kept alive is not told here."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from studio.supervisor.names import worker_name
from studio.supervisor.processes import Program
from studio.supervisor.slots import NO_GPU
from studio.supervisor.sockets import engine_socket

ROOT = Path(__file__).resolve().parents[2]

QUIET_LIBRARIES = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # idle OpenMP threads sleep; spinning ones take the web server's core
    "GOMP_SPINCOUNT": "0",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Place:
    """Where everything runs: what the lines of the table are filled in with."""

    data_dir: Path
    redis_url: str
    listener: int
    """Descriptor of the listening socket, opened before anything starts and handed down to the web server."""
    slots: tuple[str, ...]
    """CUDA_VISIBLE_DEVICES of each training worker."""
    engine: tuple[str, ...] = ()
    """What the process that answers is told beside where it is."""


def python(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words)


def worker(name: str, *, queue: str, gpu: str) -> Program:
    command = python("django", "rqworker", queue, "--verbosity", "0", "--worker-class", "studio.orders.rqworker.SlotWorker")
    return Program(name, command, env={"CUDA_VISIBLE_DEVICES": gpu}, after_end=take_up_after)


def take_up_after(pid: int) -> tuple[str, ...]:
    """Orders that the worker with this process id held go to another one now, not when their heartbeat has become old."""
    return python("django", "reconcile", "--lost", worker_name(pid))


def environment(place: Place) -> dict[str, str]:
    """What every process is started with. A value that the person who starts the studio has set wins over ours."""
    quiet = {name: os.environ.get(name, value) for name, value in QUIET_LIBRARIES.items()}
    return quiet | {
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "studio.settings"),
        "STUDIO_DATA_DIR": str(place.data_dir),
        "STUDIO_ENGINE_SOCKET": str(engine_socket(place.data_dir)),
        "REDIS_URL": place.redis_url,
    }


def web(place: Place) -> Program:
    options = ["--lifespan", "off", "--log-level", "warning", "--timeout-graceful-shutdown", "3"]
    options += ["--ws", "websockets-sansio", "--ws-max-size", "65536"]  # bytes; browsers send nothing through it
    command = python("uvicorn", "studio.asgi:application", "--fd", str(place.listener), *options)
    # Uploads pass through it; the system's own folder for temporary files is often small, or even in memory.
    temporary = {"TMPDIR": str(place.data_dir / "tmp")}
    return Program("web", command, env=temporary, grace=6, orphaned=signal.SIGTERM, keeps=(place.listener,))


def rounds() -> Program:
    """Looks for lost and unheard orders, whosever they are."""
    return Program("rounds", python("django", "reconcile", "--every", "10"), grace=2)


def engine(place: Place) -> Program:
    where = ("--socket", str(engine_socket(place.data_dir)), "--root", str(place.data_dir))
    return Program("engine", python("studio.serving.engine", *where, *place.engine))


FILE_WORKERS = 2
"""What reads files: with one alone, everybody's uploads would wait behind a large import, or behind rows that a model writes."""


def table(place: Place) -> list[Program]:
    """The web server first: `up` waits for its first page."""
    return [
        web(place),
        engine(place),
        rounds(),
        *(worker(f"files{number}", queue="files", gpu=NO_GPU) for number in range(FILE_WORKERS)),
        *(worker(f"train{number}", queue="train", gpu=gpu) for number, gpu in enumerate(place.slots)),
    ]
