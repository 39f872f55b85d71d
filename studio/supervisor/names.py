"""How a worker process is called in Redis, in an order's row and on the workers page."""

import socket


def worker_name(pid: int) -> str:
    """Unique among living workers, and known to whoever started the process."""
    return f"{socket.gethostname()}-{pid}"
