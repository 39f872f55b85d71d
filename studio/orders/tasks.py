"""The one job that RQ knows: work on an order. Decides nothing."""

import socket

from rq import get_current_job

from studio.orders.services import claim
from studio.orders.supervising import Supervisor


def work(kind: str, pk: str, attempt: int) -> None:
    job = get_current_job()
    worker = (job.worker_name if job else None) or socket.gethostname()
    order = claim(pk, attempt=attempt, worker=worker)
    if order is not None and order.kind == kind:
        Supervisor(order).run()
