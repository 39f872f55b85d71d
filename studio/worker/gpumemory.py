"""How full a GPU is now. No torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuMemory:
    """Bytes."""

    total: int
    free: int


def gpu_memory() -> GpuMemory | None:
    """Of the first GPU that this process may use; None where there is none, or nobody can say."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    first = visible.split(",")[0].strip() if visible is not None else ""
    if tool is None or (visible is not None and first in {"", "-1"}):
        return None
    query = [tool, *(["-i", first] if first else []), "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=15, check=True)
        total, free = (int(figure) << 20 for figure in answer.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return GpuMemory(total, free)
