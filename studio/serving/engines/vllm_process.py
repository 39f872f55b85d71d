"""A vLLM server that this studio starts for one base model, waits for, and ends. It never outlives the process that started it."""

import asyncio
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from studio.errors import UserError
from studio.lifeline import die_with
from studio.serving.engines.vllm_adapters import context_of
from studio.serving.engines.vllm_wire import Upstream

ADAPTERS_AT_ONCE, ADAPTERS_NEAR, LARGEST_RANK = 8, 64, 64
"""Adapters that one batch may mix, those kept in main memory beside them, and the rank that room is made for."""
CONTEXT = 8192
"""Tokens of one conversation at most, where nothing else is set; what it takes of the memory grows with them."""
LONGEST_START = 1200.0
"""Seconds; the first start of a model compiles its kernels."""
LOOKS = 0.25
LAST_WORDS = 20_000
GRACE = 20.0
NO_MEMORY = ("out of memory", "free memory on device", "no available memory", "larger than the available kv cache", "not enough memory")
NO_SUCH = ("model architectures", "are not supported for now", "has no vllm implementation", "unsupported")

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "VLLM_", "TORCH", "TRITON_", "XDG_")


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Adapters are put on and taken off while it runs; it asks no hub, and writes no text of anybody into its log."""
    kept = {name: value for name, value in given.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return kept | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Process:
    """`vllm serve` on a private socket."""

    def __init__(self, command: str, base: Path, *, name: str, share: float, folder: Path, context: int = 0):
        self.socket, self.log = folder / f"{name[:24]}.sock", folder / f"{name[:24]}.log"
        self.socket.unlink(missing_ok=True)
        words = [*shlex.split(command), "serve", str(base)]
        words += ["--uds", str(self.socket), "--served-model-name", name]
        words += ["--enable-lora", "--max-loras", str(ADAPTERS_AT_ONCE), "--max-cpu-loras", str(ADAPTERS_NEAR)]
        words += ["--max-lora-rank", str(LARGEST_RANK), "--max-model-len", str(context_of(base, most=context or CONTEXT))]
        words += ["--gpu-memory-utilization", f"{share:.4f}", "--enable-prompt-tokens-details"]
        words += [
            "--generation-config",
            "vllm",
            "--uvicorn-log-level",
            "warning",
        ]  # the model's own file would change what nobody asked for
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(os.environ),
                process_group=0,
                preexec_fn=die_with(os.getpid(), by=signal.SIGTERM),
            )

    @property
    def runs(self) -> bool:
        return self.child.poll() is None

    async def ready(self, upstream: Upstream) -> None:
        """Returns once it answers. Raises UserError where it ends before, and ends it where that takes too long."""
        began = time.monotonic()
        while not (self.socket.exists() and await upstream.is_ready()):
            if not self.runs:
                raise self.failure()
            if time.monotonic() - began > LONGEST_START:
                await self.end()
                raise UserError("vLLM did not start in time. Its log says how far it came.", code="broken")
            await asyncio.sleep(LOOKS)

    def failure(self) -> UserError:
        """Why it ended, by its last words."""
        said = self.last_words().lower()
        if any(words in said for words in NO_MEMORY):
            return UserError("The GPU's memory is not enough for this model now. Ask again later.", code="no_memory")
        if any(words in said for words in NO_SUCH):
            return UserError("vLLM does not know this kind of model.", code="unsupported")
        return UserError(f"vLLM ended while it loaded the model. Its log says why: {self.log}", code="broken")

    def last_words(self) -> str:
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LAST_WORDS))
            return log.read().decode(errors="replace")
        return ""

    async def end(self) -> None:
        """Asks it to end, then makes it, with all that it started."""
        with suppress(ProcessLookupError):
            self.child.terminate()
        until = time.monotonic() + GRACE
        while self.runs and time.monotonic() < until:
            await asyncio.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.socket.unlink(missing_ok=True)
