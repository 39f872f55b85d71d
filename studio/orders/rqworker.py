"""The RQ worker as this studio starts it: it says which machine it is, then takes orders."""

from typing import Any

from rq.serializers import JSONSerializer

from studio.orders import slots
from studio.supervisor.rqworkers import StudioWorker


class SlotWorker(StudioWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # RQ's own is pickle: whoever can write to Redis could run anything here.
        super().__init__(*args, **{**kwargs, "serializer": JSONSerializer})

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
