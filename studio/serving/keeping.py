"""Keeps what the endpoint was asked and what it answered, where a project says so and for as long as it says; and lets go of it again."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.db import connection, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Least
from django.utils import timezone

from studio.audit.services import record
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.models import Deployment, Keeping, KeptAnswer
from studio.serving.words import let_go, words_in
from studio.workspaces.models import ApiKey, Member, Project, hold

LONGEST_DAYS = 365
LARGEST = 1 << 20
"""Bytes of a conversation with its answer that is kept."""
DEEPEST = 40
"""How far lists and objects of a message may be inside each other."""
SHOWN = 300
PIECE = 1000
"""Rows that are deleted at once."""


def keep(
    *,
    pk: uuid.UUID,
    deployment: Deployment | None,
    release: Release,
    key: ApiKey | None,
    messages: list[dict[str, Any]],
    answer: dict[str, Any],
    at: datetime,
) -> KeptAnswer | None:
    """What was asked and answered, under the answer's id. None where the project keeps nothing, or it is longer than `LARGEST`."""
    project = deployment.project_id if deployment else release.project_id
    if not Keeping.objects.filter(project=project).exists():
        return None
    try:
        asked, answered = plain(messages), plain(answer)
    except TooDeep:
        return None
    if len(orjson.dumps([asked, answered])) > LARGEST:
        return None
    columns = {"deployment": deployment, "release": release, "key": key, "at": at, "messages": asked, "answer": answered}
    with transaction.atomic():
        # Whoever turns it off meanwhile waits, and deletes this one, too.
        keeping = Keeping.objects.select_for_update(no_key=True).filter(project=project).first()
        if keeping is None:
            return None
        made: KeptAnswer = KeptAnswer.objects.create(
            pk=pk, project_id=project, until=at + timedelta(days=keeping.days), **columns, **in_words(asked, answered)
        )
    return made


class TooDeep(Exception):
    pass


def plain(value: Any, depth: int = 0) -> Any:
    """As any database can store it: without NUL and half characters."""
    if depth > DEEPEST:
        raise TooDeep
    match value:
        case str():
            return value.encode(errors="replace").decode().replace("\x00", "\ufffd")
        case dict():
            return {plain(str(name)): plain(inner, depth + 1) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner, depth + 1) for inner in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
    return value


def in_words(messages: Any, answer: Any) -> dict[str, str]:
    """The columns that lists and searches read."""
    asked = [text_of(message) for message in messages]
    last = next((text for message, text in zip(messages[::-1], asked[::-1], strict=True) if role_of(message) == "user"), "")
    answered = text_of(answer)
    return {"question": first_of(last), "beginning": first_of(answered), "words": words_in([*asked, answered])}


def role_of(message: Any) -> str:
    return str(message.get("role", "")) if isinstance(message, dict) else ""


def text_of(message: Any) -> str:
    """What a message in OpenAI's shape says: its content, be that text or parts, and which tools it calls."""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts.append(f"{function.get('name', '')}({function.get('arguments', '')})")
    return "\n".join(text for text in texts if isinstance(text, str))


def first_of(text: str) -> str:
    """One line of it."""
    return " ".join(text[: SHOWN * 4].split())[:SHOWN]


@dataclass(frozen=True)
class Loss:
    """What a change of the setting deletes."""

    answers: int
    days: int | None


def keeping_of(project: Project) -> Keeping | None:
    return Keeping.objects.filter(project=project).first()


def set_keeping(member: Member, project: Project, *, days: int | None, confirmed: bool) -> int:
    """Keeps answers for so many days, or none and nothing that was kept. Returns how many were deleted.

    Nothing that was kept is kept longer than was said then. Raises UserError with the code `confirm` where something would be deleted and
    that was not `confirmed`.
    """
    if days is not None and not 1 <= days <= LONGEST_DAYS:
        raise UserError("The number of days cannot be used.", fields={"days": f"Keep them for 1 to {LONGEST_DAYS} days."})
    with transaction.atomic():
        hold(project)
        keeping = Keeping.objects.select_for_update().filter(project=project).first()
        before = keeping.days if keeping else None
        if before == days:
            return 0
        over = beyond(project, days)
        if (count := over.count()) and not confirmed:
            raise UserError(told_of(count, days), code="confirm", facts={"answers": count})
        over.delete()
        if days is None and keeping is not None:
            gone, keeping_pk = keeping, keeping.pk
            keeping.delete()
            gone.pk = keeping_pk
            record(member, "answer.keep", gone, change={"days": [before, None], "deleted": count})
            return count
        keeping = keeping or Keeping(project=project)
        keeping.days = days or 0
        keeping.save()
        sooner = F("at") + timedelta(days=keeping.days)
        KeptAnswer.objects.filter(project=project).update(until=Least(F("until"), sooner))
        record(member, "answer.keep", keeping, change={"days": [before, days], "deleted": count})
    return count


def told_of(count: int, days: int | None) -> str:
    them = f"{count:,} answer{'s' if count > 1 else ''}"
    if days is None:
        return f"This deletes the {them} kept so far."
    return f"This deletes {them} older than {days} day{'s' if days > 1 else ''}."


def beyond(project: Project, days: int | None) -> "QuerySet[KeptAnswer]":
    """What a project has kept that it would no longer keep."""
    kept: QuerySet[Any] = KeptAnswer.objects.filter(project=project)
    return kept if days is None else kept.filter(at__lt=timezone.now() - timedelta(days=days))


def delete(member: Member, kept: KeptAnswer) -> None:
    with transaction.atomic():
        record(member, "answer.delete", kept)
        kept.delete()


def expire() -> list[str]:
    """The hourly sweep: deletes what is over, and what is left of a project that keeps nothing any more.

    The index lets go of the words of whatever has been deleted since, by this or by people.
    """
    count = 0
    for over in (KeptAnswer.objects.filter(until__lte=timezone.now()), KeptAnswer.objects.filter(project__keeping=None)):
        while pks := list(over.order_by().values_list("pk", flat=True)[:PIECE]):
            count += KeptAnswer.objects.filter(pk__in=pks).delete()[0]
    let_go(connection)
    return [f"Deleted {count} kept answer{'s' if count > 1 else ''} whose time is over"] if count else []
