"""The RQ worker as this studio starts it: it says which machine it is, then takes orders."""

from typing import Any

from studio.orders import slots
from studio.supervisor.rqworkers import StudioWorker


class SlotWorker(StudioWorker):
    def work(self, *args: Any, **kwargs: Any) -> bool:
        announcer = slots.Announcer(name=self.name, queue=self.queue_names()[0])
        announcer.start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            announcer.ended.set()
            slots.forget(self.name)
