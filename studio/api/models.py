"""What was answered to a request that named itself, so that a repeat does nothing twice."""

from django.db import models

from studio.workspaces.models import ApiKey


class IdempotentAnswer(models.Model):
    """The first answer to one `Idempotency-Key` of one API key.

    It belongs to the API key and not to its member: another key may see less.
    """

    api_key = models.ForeignKey(ApiKey, models.CASCADE, related_name="+")
    key = models.CharField(max_length=200)
    path = models.CharField(max_length=300)
    sha256 = models.CharField(max_length=64)
    """Of the request's body."""
    status = models.PositiveSmallIntegerField(default=0)
    body = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["api_key", "key"], name="one_answer_per_idempotency_key")]

    def __str__(self) -> str:
        return f"{self.path} {self.key}"
