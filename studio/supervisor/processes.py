"""Keeps one program running: starts it, passes its output to the log, restarts it, stops it. Which programs, the table says."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from studio.lifeline import die_with
from studio.supervisor.logs import Log

STEADY_AFTER = 30.0  # seconds of running after which earlier failures are forgotten
LONGEST_PAUSE = 30.0  # seconds
LONGEST_LINE = 1 << 16  # bytes
AFTER_KILL = 5.0  # seconds that the kernel gets to take a killed process away


@dataclass(frozen=True)
class Program:
    """One line of the table of what runs."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    orphaned: signal.Signals = signal.SIGKILL
    """What it gets when the supervisor itself is killed."""
    keeps: tuple[int, ...] = ()
    """Open descriptors that it inherits."""
    noise: tuple[str, ...] = ()
    """Lines that hold one of these are not shown."""
    after_end: Callable[[int], tuple[str, ...]] | None = None
    """The command that takes up what it left, given its process id; run after each end, before the next start."""


def pause_after(failures: int) -> float:
    """Seconds to wait before the next start: 0.2, 0.4, 0.8 … 30."""
    return min(LONGEST_PAUSE, 0.1 * 2.0**failures)


class Keeper:
    """Keeps one program alive until `stop`; `failures` counts the exits since it last ran for a while."""

    def __init__(self, program: Program, *, log: Log) -> None:
        self.program = program
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.failures = 0
        self.stopping = asyncio.Event()

    async def keep(self) -> None:
        while not self.stopping.is_set():
            started = time.monotonic()
            code = await self._run(self.program.command)
            if self.program.after_end and self.process:
                await self._clean_up(self.program.after_end(self.process.pid))
            if self.stopping.is_set():
                return
            self.failures = 1 if time.monotonic() - started > STEADY_AFTER else self.failures + 1
            pause = pause_after(self.failures)
            self.log.line("studio", f"{self.program.name} ended ({how_it_ended(code)}); it starts again in {pause:.1f} s")
            await self._rest(pause)

    async def stop(self) -> None:
        """Asks with SIGTERM, waits `grace` seconds, then kills the process and its group."""
        self.stopping.set()
        if self._signal(signal.SIGTERM) and not await self._ended_within(self.program.grace):
            self.log.line("studio", f"{self.program.name} did not stop within {self.program.grace:.0f} s and is killed")
            await self.kill()

    async def kill(self) -> None:
        self.stopping.set()
        if self._signal(signal.SIGKILL, group=True):
            await self._ended_within(AFTER_KILL)

    async def _run(self, command: tuple[str, ...]) -> int:
        self.process = await self._launch(command)
        assert self.process.stdout
        reading = asyncio.create_task(self._read(self.process.stdout))
        if self.stopping.is_set():  # asked to stop while it was being started
            self._signal(signal.SIGTERM)
        code = await self.process.wait()
        await asyncio.wait({reading}, timeout=1)  # a grandchild may hold the pipe open for longer
        reading.cancel()
        return code

    async def _clean_up(self, command: tuple[str, ...]) -> None:
        """Runs it once. A failure is in the log and changes nothing here: whoever looks regularly finds the same work later."""
        process = await self._launch(command)
        assert process.stdout
        await self._read(process.stdout)
        await process.wait()

    async def _launch(self, command: tuple[str, ...]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **self.program.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the others in order
            pass_fds=self.program.keeps,
            preexec_fn=die_with(os.getpid(), by=self.program.orphaned),
        )

    async def _read(self, output: asyncio.StreamReader) -> None:
        """Prints line by line. Reads in chunks, for a progress bar is one endless line with carriage returns."""
        rest = b""
        while chunk := await output.read(LONGEST_LINE):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._show(line)
        self._show(rest)

    def _show(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        if text.strip() and not any(noise in text for noise in self.program.noise):
            self.log.line(self.program.name, text)

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return

    def _signal(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Whether there was a process to send it to."""
        if not self.process or self.process.returncode is not None:
            return False
        try:
            (os.killpg if group else os.kill)(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def _ended_within(self, seconds: float) -> bool:
        assert self.process
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            return False
        return True


def how_it_ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
