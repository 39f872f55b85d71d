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


def gpus_in_use() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; the first one where nobody has said."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ["0"] if visible is None else [name.strip() for name in visible.split(",") if name.strip() not in {"", "-1"}]


def gpu_memory() -> GpuMemory | None:
    """Of the first GPU that this process may use; None where there is none, or nobody can say."""
    tool, gpus = shutil.which("nvidia-smi"), gpus_in_use()
    if tool is None or not gpus:
        return None
    query = [tool, "-i", gpus[0], "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=15, check=True)
        total, free = (int(figure) << 20 for figure in answer.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return GpuMemory(total, free)
