"""Which release answers a request to a deployment: the canary for its share of the keys, the release for all others. Changes nothing."""

import hashlib
import secrets

from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.models import Deployment


def choose(deployment: Deployment, key: str | None = None) -> Release:
    """The release that answers. The same key, such as a conversation's, is answered by the same one as long as the share does not shrink.

    Without a key each request is drawn anew. Raises UserError where nothing answers.
    """
    if deployment.archived_at is not None:
        raise UserError(f"{deployment} is archived, so it answers nothing. Restore it first.", code="not_deployed")
    if deployment.release is None:
        raise UserError(f"Nothing answers at {deployment} yet. Promote a release first.", code="not_deployed")
    if deployment.canary is not None and place_of(deployment, key) < deployment.canary_percent:
        return deployment.canary
    return deployment.release


def place_of(deployment: Deployment, key: str | None) -> int:
    """0 to 99: where a key stands. Each canary shuffles anew, so that not the same people always meet what is new first."""
    if key is None:
        return secrets.randbelow(100)
    digest = hashlib.sha256(f"{deployment.pk} {deployment.canary_id} {key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 100
