"""What else holds a machine's memory, for whoever is told that a model does not fit now."""

from typing import Any

from asgiref.sync import sync_to_async

from studio.orders.models import Order

TRAINS = "A run is training on this machine now: ask again when it has ended, or pause it."
BUILDS = "A file is being built on this machine now. Ask again when it is done."


async def with_reason(line: dict[str, Any]) -> dict[str, Any]:
    """The line of an error; where memory was missing, with what is known to take it. Names nobody's run."""
    error = line.get("error")
    if not error or error["code"] != "no_memory":
        return line
    reason = await sync_to_async(holder)()
    return {"error": error | {"message": f"{error['message']} {reason}".strip()}}


def holder() -> str:
    working = set(Order.objects.filter(status__in=Order.ACTIVE, kind__in=("train", "build")).values_list("kind", flat=True))
    return TRAINS if "train" in working else BUILDS if working else ""
