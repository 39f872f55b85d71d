"""What this machine has for training: processors, memory, GPUs, speed, packages. Torch is imported only where its speed is measured."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from studio.training.facts import Gpu, HostFacts

PACKAGES = ("torch", "transformers", "peft", "safetensors", "unsloth", "bitsandbytes", "gguf", "xllamacpp", "trl", "flash-attn")
CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_BF16_GAIN = 4.0
"""bf16 over fp32 matrix speed on processors that have it: 4.4 was measured on one with avx512_bf16."""
BF16_COMPUTE_CAPABILITY = 8.0
GPU_GFLOPS = {
    "H200": 800e3,
    "H100": 800e3,
    "B200": 1800e3,
    "A100": 312e3,
    "L40S": 362e3,
    "L4": 121e3,
    "4090": 165e3,
    "3090": 71e3,
    "A10": 125e3,
}
"""Dense bf16 GFLOP/s by a part of the name, from the makers' sheets."""
UNKNOWN_GPU_GFLOPS = 50e3
CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Control groups write absurdly large numbers where there is no limit."""


def training_environment() -> dict[str, str]:
    """Variables that must stand in a worker's environment before it imports torch.

    By default OpenMP's threads spin while they wait, which on a shared machine doubles the processor time of a step. Never to spin
    makes each of a step's thousand short products wait for the kernel, which took up to a quarter of the speed; so they spin briefly. And
    oneDNN keeps a thousand compiled products, one for each length of batch, which was measured to take 0.8 GB for no speed.
    """
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "30000",
        "OMP_NUM_THREADS": str(cpu_count()),
        "LRU_CACHE_CAPACITY": "64",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # accelerate imports mlflow where it is there
    }


def host_facts(name: str = "", *, with_gpus: bool = True) -> HostFacts:
    """This machine as a worker slot. Takes a second or two, to measure how fast it is; in a process of its own, for it starts threads."""
    gpus = nvidia_gpus() if with_gpus else []
    bf16 = all(capability >= BF16_COMPUTE_CAPABILITY for _, capability in gpus) if gpus else cpu_has_bf16()
    gflops, traffic = (gpu_gflops(gpus[0][0].name), 0.0) if gpus else cpu_speed(bf16=bf16)
    return HostFacts(
        name=name or socket.gethostname(),
        cpus=cpu_count(),
        memory=memory_size(),
        gpus=[gpu for gpu, _ in gpus],
        bf16=bf16,
        gflops=round(gflops, 1),
        traffic=round(traffic),
        packages=package_versions(),
    )


def cpu_count(cgroup: Path = CGROUP) -> int:
    """Processors that this process may use: its affinity, and its control group's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        usable = min(usable, max(1, int(quota[0]) // int(quota[1])))
    return usable


def memory_size(cgroup: Path = CGROUP) -> int:
    """Bytes of main memory, or what the control group leaves of it (version 2, then 1)."""
    size = psutil.virtual_memory().total
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        limit = _read(file)
        if limit.isdigit() and int(limit) < NO_LIMIT:
            size = min(size, int(limit))
    return int(size)


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True where the processor multiplies bf16 in hardware."""
    flags = next((line for line in _read(cpuinfo).splitlines() if line.startswith("flags")), "")
    return bool(CPU_BF16_FLAGS & set(flags.split()))


def nvidia_gpus() -> list[tuple[Gpu, float]]:
    """(GPU, compute capability) of each one that nvidia-smi lists; none where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def parse_gpus(text: str) -> list[tuple[Gpu, float]]:
    """Reads lines such as `NVIDIA H100 80GB HBM3, 81559, 9.0`: name, MiB, compute capability."""
    gpus = []
    for line in text.splitlines():
        name, _, rest = line.partition(",")
        memory, _, capability = rest.partition(",")
        try:
            gpus.append((Gpu(name=name.strip(), memory=int(memory) * (1 << 20)), float(capability)))
        except ValueError:  # "[N/A]" where a driver does not tell: such a card cannot be planned with
            continue
    return gpus


def gpu_gflops(name: str) -> float:
    return next((speed for part, speed in GPU_GFLOPS.items() if part in name), UNKNOWN_GPU_GFLOPS)


def cpu_speed(*, bf16: bool) -> tuple[float, float]:
    """(GFLOP/s of matrices, bytes per second of small operations) in the format that a training would use; 0 bytes without torch."""
    if importlib.util.find_spec("torch") is None:
        return cpu_gflops() * (CPU_BF16_GAIN if bf16 else 1.0), 0.0
    return torch_gflops(bf16=bf16), torch_traffic(bf16=bf16)


def cpu_gflops(*, size: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of fp32 products of `size` × `size` matrices on all processors: the best of as many as fit into `seconds`."""
    import numpy as np

    matrix = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    return cpu_count() * 2 * size**3 / shortest(lambda: matrix @ matrix, seconds=seconds) / 1e9


def torch_gflops(*, bf16: bool, size: int = 1024, seconds: float = 0.2) -> float:
    """The same by torch, in bf16 where that is asked for."""
    import torch

    matrix = torch.randn(size, size).to(torch.bfloat16 if bf16 else torch.float32)
    return cpu_count() * 2 * size**3 / shortest(lambda: matrix @ matrix, seconds=seconds) / 1e9


def torch_traffic(*, bf16: bool, tokens: int = 512, hidden: int = 576, seconds: float = 0.3) -> float:
    """Bytes kept per second, on all processors, by what stands between a layer's matrices: two norms and a gated activation.

    Forward and back, at the proportions of a Llama, whose middle is about 8/3 as wide as its hidden states.
    """
    import torch
    from torch.nn.functional import silu

    dtype, wide, middle = (torch.bfloat16, 2, 8 * hidden // 3) if bf16 else (torch.float32, 4, 8 * hidden // 3)
    states = torch.randn(tokens, hidden).to(dtype).requires_grad_()
    gate, up = (torch.randn(tokens, middle).to(dtype).requires_grad_() for _ in range(2))
    outer, wider = torch.ones(tokens, hidden, dtype=dtype), torch.ones(tokens, middle, dtype=dtype)

    def pass_through() -> None:
        for _ in range(2):
            high = states.float()
            (high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype).backward(outer)  # type: ignore[no-untyped-call]
        (silu(gate) * up).backward(wider)  # type: ignore[no-untyped-call]
        states.grad = gate.grad = up.grad = None

    kept = tokens * (2 * (4 + wide) * hidden + 3 * wide * middle)
    return cpu_count() * kept / shortest(pass_through, seconds=seconds)


def shortest(work: Callable[[], object], *, seconds: float) -> float:
    """Seconds of processor time that `work` takes at best: so it tells what the machine can do also while others keep it busy."""
    work()  # the first time starts threads and compiles kernels
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def package_versions() -> dict[str, str]:
    """Versions of the packages that plugins ask for, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> str:
    """A kernel file's text, or nothing where this kernel has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
