"""The RQ worker as this studio starts it: it says which machine it is, then takes orders."""

import logging
from typing import Any

from rq.exceptions import DeserializationError
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from studio.orders import slots
from studio.orders.services import WORK
from studio.supervisor.rqworkers import StudioWorker

log = logging.getLogger("studio.orders")


class SlotWorker(StudioWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # RQ's own is pickle: whoever can write to Redis could run anything here.
        super().__init__(*args, **{**kwargs, "serializer": JSONSerializer})

    def execute_job(self, job: Job, queue: Queue) -> Any:
        if is_ours(job):
            return super().execute_job(job, queue)
        log.error("The queue holds a job that no order placed; it is thrown away: %s", job.id)
        job.delete()
        return None

    def work(self, *args: Any, **kwargs: Any) -> bool:
        queue, facts = self.queue_names()[0], slots.measure(self.name)
        slots.announce(name=self.name, queue=queue, facts=facts)  # before the first order, which asks for it
        announcer = slots.Announcer(name=self.name, queue=queue, facts=facts)
        announcer.start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            announcer.ended.set()
            slots.forget(self.name)


def is_ours(job: Job) -> bool:
    """True for the one function that orders ring with. RQ would call any other by its name, and any that a job names for its end."""
    try:
        called = job.func_name
    except DeserializationError:
        return False
    return called == WORK and not (job._success_callback_name or job._failure_callback_name or job._stopped_callback_name)
