"""Gives the runs of a made comparison what a training leaves behind, for what a verdict says of time, memory and cost."""

from datetime import timedelta

from django.utils import timezone

from studio.comparisons.models import Comparison
from studio.orders.models import Event, Usage


def trained(comparison: Comparison, *, apart: float = 0.0) -> None:
    """Each run worked for ten minutes on one GPU, the reference's for thirty, and reported two steps.

    `apart`: by which share each further seed of an arm took more than the first, of everything.
    """
    for arm in comparison.arms.all():
        for place, arm_run in enumerate(arm.runs.select_related("run__order")):
            factor = (3 if arm.is_reference else 1) * (1 + apart * place)
            order = arm_run.run.order
            order.status, order.ended_at = "succeeded", timezone.now()
            order.started_at = order.ended_at - timedelta(minutes=10 * factor)
            order.save()
            columns = {"workspace": order.workspace, "client": order.client, "order": order, "kind": "train"}
            Usage.objects.create(
                **columns, attempt=1, worker_kind="NVIDIA L4", gpus=1, started_at=order.started_at, ended_at=order.ended_at
            )
            for step in (1, 2):
                body = {"step": step, "loss": 2.0, "memory": 1e9 * factor + step, "tokens": 1000 * step, "tokens_per_second": 100 / factor}
                body["energy"] = 20.0 * factor * step
                Event.objects.create(order=order, seq=step, attempt=1, at=order.ended_at, type="metric", body=body)
