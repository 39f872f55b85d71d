"""The order of things in `manage.py up`: lock, port, Redis, database, processes, the link, and all of it backwards at the end."""

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from studio.errors import UserError
from studio.storage import remove_folder
from studio.supervisor.listener import base_url, listen
from studio.supervisor.logs import Log
from studio.supervisor.processes import Keeper, Program
from studio.supervisor.programs import ROOT, Place, environment, table
from studio.supervisor.redis_server import redis_program, wait_until_it_answers
from studio.supervisor.slots import training_slots, visible_gpus
from studio.supervisor.sockets import redis_url

LONGEST_WEB_START = 120.0  # seconds


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int | None = None
    ready_file: Path | None = None
    engine: tuple[str, ...] = ()
    """What the process that answers is told, from the settings."""


@dataclass(frozen=True)
class Hooks:
    """What only Django knows. Both are called in a thread."""

    prepare: Callable[[], None]
    """Brings the database up to date."""
    setup_url: Callable[[str], str | None]
    """The link with which the first owner makes an account; None once there is one."""


def up(options: Options, hooks: Hooks, *, programs: Callable[[Place], list[Program]] = table, log: Log | None = None) -> None:
    """Runs everything until SIGINT or SIGTERM. The first program is the web server. Raises UserError when it cannot start."""
    options.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with only_one(options.data_dir), listen(host=options.host, port=options.port) as listener:
        remove_folder(options.data_dir / "tmp")  # halves of uploads that a killed web server left
        (options.data_dir / "tmp").mkdir(mode=0o700)
        slots = training_slots(wanted=options.workers, gpus=visible_gpus())
        url = os.environ.get("REDIS_URL", "")
        place = Place(options.data_dir, url or redis_url(options.data_dir), listener.fileno(), tuple(slots), options.engine)
        os.environ.update(environment(place))
        os.chdir(ROOT)
        redis = None if url else redis_program(options.data_dir)
        asyncio.run(Supervisor(options, hooks, log=log or Log()).run(redis, programs(place), url=base_url(listener)))


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Holds the data folder: two supervisors on one folder would ring and recover the same runs."""
    with (data_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"Adapter Studio already runs on {data_dir} (process {lock.read().strip()}). "
                "Stop it with Ctrl-C in its terminal, or choose another folder with --data-dir."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class Supervisor:
    """One start, from Redis to the last stop."""

    def __init__(self, options: Options, hooks: Hooks, *, log: Log) -> None:
        self.options = options
        self.hooks = hooks
        self.log = log
        self.stop_asked = asyncio.Event()
        self.hurry_asked = asyncio.Event()
        self.keepers: dict[asyncio.Task[None], Keeper] = {}

    async def run(self, redis: Program | None, programs: list[Program], *, url: str) -> None:
        self._listen_for_signals()
        keeper = self._keep(redis) if redis else None
        try:
            await self._until_stopped(self._start(keeper, programs, url))
            await self._until_stopped(asyncio.Event().wait())
        finally:
            await self._stop(last=keeper)

    async def _start(self, redis: Keeper | None, programs: list[Program], url: str) -> None:
        started = time.monotonic()
        if self.options.ready_file:
            self.options.ready_file.unlink(missing_ok=True)
        await wait_until_it_answers(os.environ["REDIS_URL"], keeper=redis)
        await asyncio.to_thread(self.hooks.prepare)
        web, *_ = [self._keep(program) for program in programs]
        await wait_for_a_page(url, web=web)
        setup_url = await asyncio.to_thread(self.hooks.setup_url, url)
        if self.options.ready_file:
            write_ready_file(self.options.ready_file, url=url, setup_url=setup_url)
        self.log.line("studio", f"up after {time.monotonic() - started:.1f} s; Ctrl-C stops everything")
        self.log.box(*(("Make the first account with this link:", setup_url) if setup_url else (f"Adapter Studio is at {url}/",)))

    def _keep(self, program: Program) -> Keeper:
        keeper = Keeper(program, log=self.log)
        self.keepers[asyncio.create_task(keeper.keep())] = keeper
        return keeper

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
                loop.add_signal_handler(number, self._ask_to_stop)

    def _ask_to_stop(self) -> None:
        if self.stop_asked.is_set():
            self.hurry_asked.set()
        else:
            self.log.line("studio", "stopping; Ctrl-C again stops at once")
            self.stop_asked.set()

    async def _until_stopped(self, work: Coroutine[Any, Any, object]) -> None:
        """Awaits `work`, drops it when a stop is asked for, and raises what goes wrong in it or in a keeper."""
        if self.stop_asked.is_set():
            work.close()
            return
        working = asyncio.create_task(work)
        asked = asyncio.create_task(self.stop_asked.wait())
        done, _ = await asyncio.wait({working, asked, *self.keepers}, return_when=asyncio.FIRST_COMPLETED)
        for task in {working, asked} - done:
            task.cancel()
        for task in done:
            task.result()

    async def _stop(self, *, last: Keeper | None) -> None:
        """Stops everything but `last`, then `last`; a second request to stop kills what is left."""
        stopping = asyncio.create_task(self._stop_in_order(last))
        hurrying = asyncio.create_task(self.hurry_asked.wait())
        await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not stopping.done():
            await asyncio.gather(*(keeper.kill() for keeper in self.keepers.values()))
        await stopping
        if self.options.ready_file:
            self.options.ready_file.unlink(missing_ok=True)
        self.log.line("studio", "stopped")

    async def _stop_in_order(self, last: Keeper | None) -> None:
        first = {task: keeper for task, keeper in self.keepers.items() if keeper is not last}
        await asyncio.gather(*(keeper.stop() for keeper in first.values()))
        await asyncio.gather(*first, return_exceptions=True)  # what a worker left is handed back while Redis still runs
        if last:
            await last.stop()
        await asyncio.gather(*self.keepers, return_exceptions=True)


async def wait_for_a_page(url: str, *, web: Keeper) -> None:
    deadline = time.monotonic() + LONGEST_WEB_START
    while not await asyncio.to_thread(serves, url):
        if web.failures >= 3 or time.monotonic() > deadline:
            raise UserError("The web server does not start; the lines above say why.")
        await asyncio.sleep(0.05)


def serves(url: str) -> bool:
    """Whether /healthz/ is answered, a redirect to https included."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=1)
    try:
        connection.request("GET", "/healthz/", headers={"Host": "localhost"})  # always an allowed host
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def write_ready_file(path: Path, *, url: str, setup_url: str | None) -> None:
    """Appears whole or not at all, for its owner alone: the link in it makes an owner."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": url, "setup_url": setup_url}, file)
    partial.replace(path)
