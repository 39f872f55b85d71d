"""The RQ worker of the studio: its loss is noticed within seconds, and it takes its job's process along.

A job runs in a fork of the worker ("horse") that itself only watches a child process, so no fork ever holds CUDA or torch.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from rq.job import Job
from rq.queue import Queue
from rq.worker import Worker

from studio.lifeline import die_with_parent
from studio.supervisor.names import worker_name

HEARTBEAT = 5  # seconds; RQ's own is 30
LOST_AFTER = 20  # seconds without a heartbeat; RQ's own is 90 and more
CLEAN_EVERY = 15  # seconds; RQ's own is 600


def end_job(number: int, frame: FrameType | None) -> None:
    """Ends the job by an exception, so that its `finally` blocks run and its child process is stopped."""
    sys.exit(128 + number)


class StudioWorker(Worker):
    """Asked to stop with SIGTERM, it asks its running job to stop too, and ends after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ours = {"job_monitoring_interval": HEARTBEAT, "worker_ttl": LOST_AFTER, "maintenance_interval": CLEAN_EVERY}
        super().__init__(*args, **{**kwargs, **ours, "name": kwargs.get("name") or worker_name(os.getpid())})

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return LOST_AFTER

    def handle_warm_shutdown_request(self) -> None:
        if self.horse_pid:
            os.kill(self.horse_pid, signal.SIGTERM)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """A job that was asked to end is no mistake; RQ would print where it stood."""
        if exc_info[0] is not SystemExit:
            super().handle_exception(job, *exc_info)

    def setup_work_horse_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, end_job)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        die_with_parent()  # without it, the job of a killed worker would go on and hold its GPU
        super().main_work_horse(job, queue)
