"""Does one order from the file to its `end` event. The one place of the worker where everything is caught."""

import errno
import json
import os
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from studio.errors import UserError
from studio.storage import commit_folder, files_in
from studio.training.job import Stopped
from studio.training.orders import Kind, Order, TrainPayload
from studio.worker import kinds
from studio.worker.events import Reporter, clean, clean_json
from studio.worker.job import WorkerJob
from studio.worker.process import StopFlag, go_without
from studio.worker.result import refuse_what_is_no_result

DETAIL = 4000
"""Characters of the traceback's end that an `end` event carries."""


def run_order(path: Path, *, pipe: int, stop: StopFlag) -> bool:
    """Does the order in the file `path`, reporting to the descriptor `pipe`; True unless it failed."""
    reporter, kind, caught = None, None, None
    try:
        order = Order.model_validate_json(path.read_bytes())
        kind = order.kind
        reporter = Reporter(folder=Path(order.folder), pipe=pipe, attempt=order.attempt, first_seq=order.first_seq)
        outcome = do(order, reporter, stop)
    except BaseException as error:  # plugins are strangers' code: SystemExit, too, must not pass for success
        caught = error
        outcome = failure(error, kind)
    (reporter or nameless(path, pipe)).end(**outcome)
    if caught:
        print_error(caught)  # after the event: where the disk is full, writing to the log fails as well
    return caught is None


def print_error(error: BaseException) -> None:
    try:
        traceback.print_exception(error)
    except Exception as another:  # as above
        traceback.print_exception(another)


def do(order: Order, reporter: Reporter, stop: StopFlag) -> dict[str, Any]:
    """The body of the `end` event of an order that did not fail."""
    job = WorkerJob(order, reporter, stop)
    os.chdir(job.work)  # what libraries leave in the current folder is thrown away with it
    if order.kind == "train":
        job.read(TrainPayload.model_validate(order.payload))
    if order.kind in kinds.WITHOUT_TORCH:
        go_without("torch")
    try:
        facts = clean_json(kinds.load(order.kind)(order.payload, job))
    except Stopped:
        return {"status": "paused" if job.pausing() else "stopped", "result": {}, "error": "", "detail": ""}
    finally:
        job.flush()
    status = "stopped" if job.stop_seen else "succeeded"
    return {"status": status, "result": facts | seal(order, job), "error": "", "detail": ""}


def seal(order: Order, job: WorkerJob) -> dict[str, Any]:
    """Makes what stands in `out` the order's result, whole or not at all; {} where nothing stands there."""
    refuse_what_is_no_result(job)
    if not files_in(job.out):
        return {}
    job.phase("saving")
    manifest = commit_folder(job.out, Path(order.target), order=order.id, kind=order.kind, attempt=order.attempt)
    return {"folder": order.target, "sha256": manifest["sha256"], "size": manifest["size"], "files": manifest["files"]}


def failure(error: BaseException, kind: Kind | None) -> dict[str, Any]:
    try:
        detail = clean("".join(traceback.format_exception(error))[-DETAIL:])
        facts = clean_json(error.facts) if isinstance(error, UserError) else {"code": "out_of_memory"} if ran_out_of_memory(error) else {}
        return {"status": "failed", "result": facts, "error": clean(sentence(error, kind)), "detail": detail}
    except Exception:  # a stranger's exception may fail at being shown, too
        word = kinds.WORDS[kind] if kind else "The order"
        text = f"{word} failed with an error that cannot be shown ({type(error).__name__[:80]}). The log has the details."
        return {"status": "failed", "result": {}, "error": clean(text), "detail": ""}


def sentence(error: BaseException, kind: Kind | None) -> str:
    if isinstance(error, UserError):
        return error.message
    if kind is None:
        return f"The order could not be read: {one_line(error)}. This is a fault of the studio; the log has the details."
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("studio"):
        return f"This worker does not have the package {error.name}. Install it, then start again."
    if ran_out_of_memory(error):
        return "Memory ran out. " + (
            "Choose a smaller batch size or max length, or a smaller base model." if kind == "train" else "Use a larger machine."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space, then start again."
    return f"{kinds.WORDS[kind]} failed: {one_line(error)}. The log has the details."


def one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return f"{error.title} has {error.error_count()} values that do not fit"
    text = " ".join(clean(error).split())[:500].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def ran_out_of_memory(error: BaseException) -> bool:
    """By name, since torch is not imported here: its errors on GPUs, and the RuntimeError of its allocator on CPUs."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def nameless(path: Path, pipe: int) -> Reporter:
    """For an order that cannot be read: the number and attempt that can still be made out in it."""
    try:
        raw = json.loads(path.read_bytes())
        attempt, first_seq = int(raw["attempt"]), int(raw["first_seq"])
    except (OSError, ValueError, KeyError, TypeError):
        attempt, first_seq = 0, 1
    return Reporter(folder=path.parent, pipe=pipe, attempt=attempt, first_seq=first_seq)
