"""What a block of code took: seconds by the clock and of the processor, and the process's peak of resident memory."""

import json
import time
from pathlib import Path
from typing import Any


class Cost:
    def __enter__(self) -> "Cost":
        self.phases: dict[str, float] = {}
        self.began, self.used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.began, time.process_time() - self.used

    def tell(self) -> None:
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        told: dict[str, Any] = {"wall": self.wall, "cpu": self.cpu, "peak": peak, "phases": self.phases}
        print(json.dumps(told))
