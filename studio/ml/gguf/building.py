"""The order "build": a base and an adapter into one GGUF file with the figures that prove it. Leaves the file in `job.out`."""

import shutil
from itertools import chain, islice
from pathlib import Path
from typing import Any

from studio import rowfile
from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.exporting import estimated_size, export
from studio.ml.gguf.verifying import MOST_LOGITS, Row, verify
from studio.training.job import Job
from studio.training.orders import BuildPayload

MOST_ROWS = 10
"""Held-out rows that a build is compared on."""
SPARE = 64 << 20
"""Bytes that stay free on the disk."""
THREADS = 2


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns `{"builds": {quantization: {"file", "size", "verification": {...}}}}`. A file that fails its check stays, with the reasons.

    Each type stands in a folder of its own, named by it.

    Raises UserError before anything runs for a base or an adapter that no GGUF can be built from, and for a full disk.
    """
    order = BuildPayload.model_validate(payload)
    base = Path(order.base)
    architectures.supported(base)
    _enough_disk(job.out, sum(estimated_size(base, quantization) for quantization in order.quantizations) + MOST_LOGITS)
    return {"builds": {quantization: _build(order, quantization, job) for quantization in order.quantizations}}


def _build(order: BuildPayload, quantization: str, job: Job) -> dict[str, Any]:
    base, adapter = Path(order.base), Path(order.adapter) if order.adapter else None
    target = job.out / quantization / f"{order.name}-{quantization}.gguf"
    job.phase("converting", f"Building {target.name}")
    made = export(
        base=base,
        adapter=adapter,
        quantization=quantization,
        target=target,
        name=order.name,
        threads=THREADS,
        progress=lambda done, total: job.progress(done, total, "bytes"),
        stopping=job.stopping,
    )
    job.phase("checking", "Comparing its answers with the merged model")
    verification = verify(gguf=target, base=base, adapter=adapter, quantization=quantization, rows=held_out(order.rows), job=job, threads=1)
    for reason in verification["reasons"]:
        job.note(reason, level="warning")
    return {"file": target.name, "size": made["size"], "verification": verification}


def held_out(rows: str) -> list[Row]:
    """Up to MOST_ROWS canonical rows of a version, from its validation split first; empty where there is no version."""
    if not rows:
        return []
    held_back = list(islice(rowfile.read(Path(rows), split="validation"), MOST_ROWS))
    trained = islice(rowfile.read(Path(rows), split="train"), MOST_ROWS - len(held_back))
    return [row for row in chain(held_back, trained) if "messages" in row or "text" in row]


def _enough_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise UserError(
            f"The file and its check need {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free. Make room, then start again.",
            code="disk_full",
        )
