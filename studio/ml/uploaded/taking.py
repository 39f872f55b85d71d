"""The order that takes an uploaded adapter in: a locked-in process looks it through, and what it leaves is checked and kept."""

import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import UserError
from studio.ml import lockedin
from studio.ml.sandbox import Bounds
from studio.ml.uploaded.containers import CONFIG, TOKENIZER, WEIGHTS, Room
from studio.ml.uploaded.inspecting import KEPT, REPORT
from studio.ml.uploaded.tensors import header
from studio.training.job import Job
from studio.training.orders import AdapterPayload

LONGEST = 1800.0
MEMORY, LIBRARIES = 1 << 30, 4 << 30
LARGEST_REPORT = 1 << 20
SPARE, COPIES = 1 << 30, 3
"""Bytes of disk that are left free; and how often its files lie there while it is looked through: unpacked, written anew, and kept."""
Word = Annotated[str, Field(max_length=120)]


class Report(BaseModel):
    """What the process says, before anything of it is believed."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tensors: Annotated[int, Field(gt=0, le=100_000)]
    parameters: Annotated[int, Field(gt=0)]
    layers: Annotated[int, Field(gt=0)]
    settings: dict[str, Any]
    left_out: Annotated[list[Word], Field(max_length=1000)]
    left_files: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=50)]
    files: Annotated[list[Word], Field(min_length=2, max_length=8)]
    made_with: Word
    says_base: Word
    changes_nothing: bool
    grew: bool
    swappable: bool
    sandbox: list[Word]


class Refusal(BaseModel):
    refused: Annotated[str, Field(max_length=2000)]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves adapter_model.safetensors and adapter_config.json in `job.out`; returns the report."""
    asked = AdapterPayload.model_validate(payload)
    upload = Path(asked.upload)
    if not upload.is_file():
        raise UserError("What had arrived of this file is gone. Upload it again.")
    job.phase("checking", "Looking through the adapter")
    size = upload.stat().st_size
    request = {
        "upload": str(upload.resolve()),
        "config": asked.config,
        "base": str(Path(asked.base).resolve()),
        "tied": asked.model.tied,
        "room": asdict(Room(store=asked.room, disk=max(0, shutil.disk_usage(job.work).free - SPARE) // COPIES)),
        "bounds": asdict(Bounds(memory=MEMORY, mapped=LIBRARIES, seconds=int(LONGEST), file=size + (64 << 20) + 200 * min(size, 1 << 24))),
    }
    folder = job.work / "looked-through"
    folder.mkdir()
    try:
        lockedin.run("studio.ml.uploaded.inspecting", request, folder=folder, job=job, seconds=LONGEST)
        report = _believed(folder / REPORT)
        for name in report.files:
            _keep(folder / KEPT / name, job.out / name)
    except lockedin.Silent as silence:
        raise UserError(f"The check of the adapter {silence}. It is damaged, or too large for this machine.") from silence
    header(job.out / WEIGHTS)
    for sentence in _notes(report, asked):
        job.note(sentence)
    return {"report": report.model_dump()}


def _believed(path: Path) -> Report:
    file, _ = lockedin.opened(path)
    with file:
        content = file.read(LARGEST_REPORT)
    with suppress(ValidationError):  # no refusal, so it is a report
        raise UserError(Refusal.model_validate_json(content).refused)
    try:
        report = Report.model_validate_json(content)
    except ValidationError as error:
        raise lockedin.Silent("gave an answer that makes no sense") from error
    if not {WEIGHTS, CONFIG} <= set(report.files) <= {WEIGHTS, CONFIG, *TOKENIZER}:
        raise lockedin.Silent("gave an answer that makes no sense")
    return report


def _keep(source: Path, target: Path) -> None:
    file, _ = lockedin.opened(source)
    with file, target.open("wb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _notes(report: Report, asked: AdapterPayload) -> list[str]:
    notes = []
    if report.changes_nothing:
        notes.append("Its second matrices are all zero, so it changes nothing: it was saved before it had learnt anything.")
    if report.left_out:
        notes.append(f"Settings that were left out: {', '.join(report.left_out[:12])}.")
    if report.left_files:
        notes.append(f"Files that were left out: {', '.join(report.left_files[:12])}.")
    if report.says_base:
        says = f"It says that it was trained on {report.says_base}. Its shapes fit {asked.model.name}"
        notes.append(f"{says}; whether that is the same model they cannot tell.")
    return notes
