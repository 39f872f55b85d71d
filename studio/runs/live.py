"""The same wire as every order's, addressed by the run."""

from uuid import UUID

from studio.orders.live import OrderConsumer
from studio.runs.models import Run
from studio.workspaces.models import Member


class RunConsumer(OrderConsumer):
    """`/ws/runs/<id>/?after=<seq>`."""

    def order_id(self, member: Member) -> UUID | None:
        rows = Run.objects.for_action(member, self.action).filter(pk=self.scope["url_route"]["kwargs"]["pk"])
        return rows.values_list("order_id", flat=True).first()
