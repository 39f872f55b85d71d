"""Where trainings run on this machine: one slot for each NVIDIA GPU, or the CPU."""

import os
import shutil
import subprocess
from pathlib import Path

from studio.errors import UserError

NO_GPU = ""  # CUDA_VISIBLE_DEVICES of a slot on the CPU


def visible_gpus() -> list[str]:
    """The GPUs that the studio may use, as CUDA_VISIBLE_DEVICES names them. A value set by whoever starts the studio is heeded."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in {"", "-1"}]
    if tool := shutil.which("nvidia-smi"):  # asked first: in a container it knows which GPUs were handed in
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
        return [str(number) for number, _ in enumerate(line for line in listing.stdout.splitlines() if line.startswith("GPU "))]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(folder.iterdir())] if folder.is_dir() else []


def training_slots(*, wanted: int | None, gpus: list[str]) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each training worker; `wanted` None takes every GPU, or one CPU slot."""
    if wanted is None:
        return gpus or [NO_GPU]
    if wanted < 0:
        raise UserError("--workers cannot be negative. Take 0 for a web server without workers.")
    if gpus and wanted > len(gpus):
        raise UserError(f"--workers {wanted} is more than the {len(gpus)} GPUs of this machine, and two trainings cannot share one.")
    return gpus[:wanted] if gpus else [NO_GPU] * wanted
