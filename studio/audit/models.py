"""What was done: an append-only record, written in the same transaction as the change."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q


def kept(to: str, **options: Any) -> Any:
    """A foreign key whose id stays when its row goes: what was done for a client that was erased is still on record."""
    return models.ForeignKey(to, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+", **options)


class AuditRecord(models.Model):
    """Who did what to which object, when, from where. Never changed, never deleted: triggers in the database see to that."""

    workspace = kept("workspaces.Workspace")
    client = kept("workspaces.Client", null=True)
    client_name = models.CharField(max_length=80, blank=True)
    """As it was called then."""
    user = kept(settings.AUTH_USER_MODEL, null=True)
    user_email = models.CharField(max_length=254, blank=True)
    """As it was then."""
    key = models.CharField(max_length=80, blank=True)
    """Name of the API key that was used, if one was."""
    at = models.DateTimeField(auto_now_add=True)
    ip = models.GenericIPAddressField(null=True)
    verb = models.CharField(max_length=60)
    object_kind = models.CharField(max_length=40)
    object_id = models.CharField(max_length=40)
    label = models.CharField(max_length=200)
    change = models.JSONField(default=dict)
    """`{field: [before, after]}`; never a secret, never the text of a row."""
    place = models.BigIntegerField(null=True)
    """1, 2, 3 in the chain of its workspace; None until it is sealed, see `studio.audit.chain`."""
    sha256 = models.CharField(max_length=64, blank=True)
    """Of this record and of the sha256 before it in the chain."""

    class Meta:
        ordering = ["-id"]
        # Each filter of the page ends with the id, so that the newest of what fits are read in order and nothing is sorted.
        indexes = [
            models.Index(fields=["workspace", "id"], name="audit_all"),
            models.Index(fields=["workspace", "client", "id"], name="audit_by_client"),
            models.Index(fields=["workspace", "user", "id"], name="audit_by_user"),
            models.Index(fields=["workspace", "object_id", "id"], name="audit_by_object"),
            models.Index(fields=["workspace", "object_kind", "id"], name="audit_by_kind"),
            models.Index(fields=["workspace", "verb", "id"], name="audit_by_verb"),
            models.Index(fields=["workspace", "at", "id"], name="audit_by_day"),
            models.Index(fields=["workspace", "id"], condition=Q(place=None), name="audit_unsealed"),
        ]
        constraints = [models.UniqueConstraint(fields=["workspace", "place"], name="audit_one_chain_per_workspace")]

    def __str__(self) -> str:
        return f"{self.verb} {self.label}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self.pk:
            raise ValueError("An audit record is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("An audit record is never deleted.")


class AuditChain(models.Model):
    """Where the chain of a workspace ends: what is missing at its end is noticed, too."""

    workspace = models.OneToOneField("workspaces.Workspace", models.DO_NOTHING, db_constraint=False, primary_key=True, related_name="+")
    place = models.BigIntegerField(default=0)
    """Of its last record; 0 where there is none."""
    sha256 = models.CharField(max_length=64, blank=True)
    """Of its last record."""

    def __str__(self) -> str:
        return f"{self.place} records"
