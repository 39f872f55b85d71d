"""What was done: an append-only record, written in the same transaction as the change."""

from typing import Any

from django.conf import settings
from django.db import models


class AuditRecord(models.Model):
    """Who did what to which object, when, from where. Never changed, never deleted."""

    workspace = models.ForeignKey("workspaces.Workspace", models.CASCADE, related_name="+")
    client = models.ForeignKey("workspaces.Client", models.SET_NULL, null=True, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    key = models.CharField(max_length=80, blank=True)
    """Name of the API key that was used, if one was."""
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    ip = models.GenericIPAddressField(null=True)
    verb = models.CharField(max_length=60)
    object_kind = models.CharField(max_length=40)
    object_id = models.CharField(max_length=40)
    label = models.CharField(max_length=200)
    change = models.JSONField(default=dict)
    """`{field: [before, after]}`; never a secret, never the text of a row."""

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.verb} {self.label}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self.pk:
            raise ValueError("An audit record is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("An audit record is never deleted.")
