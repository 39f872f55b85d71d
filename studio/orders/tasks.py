"""The one job that RQ knows: work on what waits. Decides nothing."""

import socket

from rq import get_current_job

from studio.orders.kinds import KINDS
from studio.orders.services import claim_next, wake
from studio.orders.supervising import Supervisor


def work(kind: str, pk: str, attempt: int) -> None:
    """Does the order whose turn it is. The job names the one that rang, which may be another."""
    job = get_current_job()
    worker = (job.worker_name if job else None) or socket.gethostname()
    queue = KINDS[kind].queue
    if order := claim_next(queue, worker=worker):
        Supervisor(order).run()
        wake(queue)  # its client may have another run now
