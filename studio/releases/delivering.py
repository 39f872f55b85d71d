"""Hands a release to its client by a link: makes it, takes it back, opens it, and counts each time that it is fetched."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, F, Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac

from studio.artifacts.ladder import rungs
from studio.artifacts.models import Build
from studio.audit.services import record, record_of_a_link
from studio.errors import UserError
from studio.releases.models import Delivery, Download, Release
from studio.workspaces.models import ApiKey, Member, ScopedQuerySet, hold
from studio.workspaces.signing_in import must_add_factor

DAYS = (7, 1, 30, 90)
"""For how long a link may hold; the first one is proposed."""
LIMITS = (0, 1, 2, 5, 10, 50)
"""How many times it may be fetched; 0 sets no limit."""
MOST_DOWNLOADS = 10_000
LONGEST_RECIPIENT = 120
LONGEST_AGENT = 200
RESUMED_WITHIN = timedelta(days=1)
"""How long a download that broke off can go on without being counted again."""
MOST_RESUMES = 50
"""How many times it can; what comes after is another download."""


def is_buildable(release: Release) -> bool:
    return release.artifact.is_chattable


def files_of(member: Member, release: Release) -> list[Build]:
    """The builds of the release's artifact that passed, the one to take first: the ladder's pick, then GGUF files from the largest down."""
    steps = rungs(member, release.artifact)
    picked = {step.build.pk for step in steps if step.recommended}
    order = {step.build.pk: number for number, step in enumerate(sorted(steps, key=lambda step: not step.recommended))}
    builds = Build.objects.for_action(member, "build.view").filter(source=release.artifact, artifact__isnull=False)
    passed = [build for build in builds.select_related("artifact", "source__project__client").order_by("created_at") if build.passed]
    for build in passed:
        build.is_recommended = build.pk in picked  # type: ignore[attr-defined]
    return sorted(passed, key=lambda build: (order.get(build.pk, len(order)), build.kind, build.quantization))


def first_file(member: Member, release: Release) -> Build:
    files = files_of(member, release)
    if not files:
        text = "Nothing was built of this release that has passed its verification. Build a file first."
        raise UserError("There is no file to hand over yet.", fields={"build": text})
    return files[0]


def why_not(release: Release) -> str:
    """Why this release cannot be delivered, and what to do; empty where it can."""
    if release.stage == Release.Stage.APPROVED:
        return ""
    if release.stage == Release.Stage.RETIRED:
        return "This release is retired, so it is not handed out any more. Deliver a newer one."
    return f"This release is {'a draft' if release.stage == Release.Stage.DRAFT else 'a candidate'}. Approve it first, then deliver it."


def create_delivery(
    member: Member,
    *,
    release: Release,
    build: Build,
    recipient: str = "",
    days: int = DAYS[0],
    limit: int | None = None,
    signed_in: bool = False,
) -> tuple[Delivery, str]:
    """The delivery and the secret of its link, which is shown this once and kept only as a hash. From then on guests see the release."""
    recipient = " ".join(recipient.split())
    wrong = {}
    if not 1 <= days <= max(DAYS):
        wrong["days"] = f"Choose from 1 to {max(DAYS)} days."
    if limit is not None and not 1 <= limit <= MOST_DOWNLOADS:
        wrong["limit"] = f"Choose from 1 to {MOST_DOWNLOADS:,} downloads, or no limit."
    if len(recipient) > LONGEST_RECIPIENT or "\0" in recipient:
        wrong["recipient"] = f"At most {LONGEST_RECIPIENT} characters."
    if build.source_id != release.artifact_id or build.artifact_id is None or not build.passed:
        wrong["build"] = "Choose a file that was built from this release and has passed its verification."
    if wrong:
        raise UserError("The delivery cannot be made like this.", fields=wrong)
    secret, now = secrets.token_urlsafe(32), timezone.now()
    with transaction.atomic():
        hold(release)
        release.refresh_from_db(fields=["stage", "shared_at"])
        if problem := why_not(release):
            raise UserError(problem, fields={"release": problem})
        if release.shared_at is None:
            release.shared_at = now
            release.save(update_fields=["shared_at"])
        delivery: Delivery = Delivery.objects.create(
            release=release,
            build=build,
            recipient=recipient,
            sha256=ApiKey.hash(secret),
            signed_in=signed_in,
            limit=limit,
            expires_at=now + timedelta(days=days),
            created_by=member.user,
        )
        change = {"file": [None, build.quantization], "days": [None, days], "limit": [None, limit], "signed_in": [None, signed_in]}
        record(member, "delivery.create", delivery, change=change)
    return delivery, secret


def revoke_delivery(member: Member, delivery: Delivery) -> None:
    """The link answers nobody from now on. What was fetched by it stays where it is."""
    with transaction.atomic():
        if Delivery.objects.filter(pk=delivery.pk, revoked_at=None).update(revoked_at=timezone.now()):
            record(member, "delivery.revoke", delivery)
    delivery.refresh_from_db(fields=["revoked_at"])


# ── Opening ──


def by_secret(secret: str) -> Delivery | None:
    """The delivery of a link, whatever became of it."""
    found: Delivery | None = with_all(Delivery.objects.all()).filter(sha256=ApiKey.hash(secret)).first()
    return found


def with_all(deliveries: ScopedQuerySet) -> ScopedQuerySet:
    """With everything that a page or a bundle says of them."""
    found: ScopedQuerySet = deliveries.select_related(
        "release__project__client__workspace",
        "release__base_model",
        "release__artifact__dataset_version__dataset__project__client",
        "build__artifact",
        "created_by",
    )
    return found


def member_for(user: Any, delivery: Delivery) -> Member | None:
    """The person's membership in the delivery's workspace, where they may fetch it there; None for everybody else."""
    if not user.is_authenticated:
        return None
    workspace = delivery.release.project.client.workspace_id
    member = Member.objects.filter(user=user.pk, workspace=workspace).select_related("user", "workspace").first()
    if member is None or must_add_factor(member):  # what the workspace asks of its pages holds here, too
        return None
    return member if Delivery.objects.for_action(member, "delivery.download").filter(pk=delivery.pk).exists() else None


# ── Fetching ──


@dataclass(frozen=True)
class Visitor:
    """Who fetches: somebody with the link, or a member on a page of their own."""

    ip: str | None
    agent: str
    member: Member | None

    @classmethod
    def of(cls, request: HttpRequest, *, member: Member | None, ip: str | None) -> "Visitor":
        return cls(ip, "".join(sign for sign in request.headers.get("User-Agent", "") if sign.isprintable())[:LONGEST_AGENT], member)


def count_download(delivery: Delivery, visitor: Visitor) -> Download | None:
    """Counts and logs one download; None where the last one was taken, or it is over, also at this very moment."""
    now, user = timezone.now(), visitor.member.user if visitor.member else None
    with transaction.atomic():
        still_open = Delivery.objects.filter(pk=delivery.pk, revoked_at=None, expires_at__gt=now)
        counted = still_open.filter(Q(limit=None) | Q(downloads__lt=F("limit"))).update(downloads=F("downloads") + 1)
        if not counted:
            return None
        download = Download.objects.create(delivery=delivery, ip=visitor.ip, user=user, agent=visitor.agent)
        if visitor.member is not None:
            record(visitor.member, "delivery.download", delivery)
        else:
            record_of_a_link(delivery.release.project.client.workspace, "delivery.download", delivery, ip=visitor.ip)
    return download


def download_mark(download: Download) -> str:
    """What a program shows when it goes on with a download that broke off. Nobody can make one for a download that was not counted."""
    signature = salted_hmac("studio.releases.delivering", f"{download.delivery_id}:{download.pk}").hexdigest()[:32]
    return f"{download.pk}.{signature}"


def resumed(delivery: Delivery, mark: str) -> Download | None:
    """The download that goes on, where it was counted lately, has not gone on too often, and the delivery is neither revoked nor over."""
    number, _, _ = mark.partition(".")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return None
    if delivery.revoked_at is not None or delivery.expires_at <= timezone.now():
        return None
    counted = Download.objects.filter(delivery=delivery, goes_on=None, at__gt=timezone.now() - RESUMED_WITHIN)
    found = counted.annotate(times=Count("resumes")).filter(pk=int(number), times__lt=MOST_RESUMES).first()
    return found if found and constant_time_compare(download_mark(found), mark) else None


def log_resume(download: Download, visitor: Visitor) -> None:
    user = visitor.member.user if visitor.member else None
    Download.objects.create(delivery=download.delivery, goes_on=download, ip=visitor.ip, user=user, agent=visitor.agent)
