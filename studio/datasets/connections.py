"""Places outside the studio that a workspace may ask: what each kind needs, and keeping it. A secret goes in and never comes out again."""

from dataclasses import dataclass
from typing import Any

import httpx
from django.conf import settings
from django.db import transaction

from studio import outgoing
from studio.audit.services import record
from studio.datasets import elsewhere
from studio.datasets.models import Connection
from studio.errors import UserError
from studio.outside import checked_address
from studio.workspaces.models import Member, hold
from studio.workspaces.secrets import opened, sealed

LONGEST_SECRET = 20_000
LONGEST = 300
PATIENCE = 10.0
"""Seconds that a person waits to hear whether a connection works."""


@dataclass(frozen=True)
class Field:
    name: str
    label: str
    help: str = ""
    placeholder: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Form:
    """What a kind of connection is told."""

    words: str
    """What it is for, in one sentence."""
    fields: tuple[Field, ...]
    secret: Field


URL = Field("url", "Address", "Up to and with /v1.", "https://api.openai.com/v1", needed=True)
BUCKET = Field("bucket", "Bucket", needed=True)
FORMS: dict[str, Form] = {
    "openai": Form(
        "A model elsewhere that writes rows, by the interface that OpenAI's has and most others share.",
        (URL, Field("model", "Model", "What is asked where nothing else is said.", "gpt-4.1-mini")),
        Field("secret", "API key"),
    ),
    "s3": Form(
        "Files in a bucket of S3, or of a store that speaks like it.",
        (
            BUCKET,
            Field("region", "Region", placeholder="eu-central-1"),
            Field("url", "Address", "Only for a store that is not Amazon's."),
            Field("key_id", "Access key ID"),
        ),
        Field("secret", "Secret access key"),
    ),
    "gcs": Form("Files in a bucket of Google Cloud Storage.", (BUCKET,), Field("secret", "Service account, as JSON")),
    "hub": Form("Datasets of Hugging Face that need a token.", (), Field("secret", "Access token", needed=True)),
}


def add(member: Member, *, kind: str, name: str, typed: dict[str, str], secret: str) -> Connection:
    form = FORMS.get(kind)
    if form is None:
        raise UserError("Choose what to connect to.", fields={"kind": f"Use one of {', '.join(FORMS)}."})
    name = " ".join(name.split())[:80]
    told = {field.name: typed.get(field.name, "").strip() for field in form.fields}
    wrong = {field.name: f"{field.label} is needed." for field in form.fields if field.needed and not told[field.name]}
    wrong |= {name: f"At most {LONGEST} characters." for name, text in told.items() if len(text) > LONGEST}
    if not name:
        wrong["name"] = "Give it a name."
    if form.secret.needed and not secret.strip():
        wrong["secret"] = f"{form.secret.label} is needed."
    if len(secret) > LONGEST_SECRET:
        wrong["secret"] = f"At most {LONGEST_SECRET} characters."
    if told.get("url") and "url" not in wrong:
        try:
            told["url"] = checked_address(told["url"], private=settings.PRIVATE_HOSTS)
        except UserError as problem:
            wrong["url"] = problem.message
    if wrong:
        raise UserError("The connection cannot be kept like this.", fields=wrong)
    with transaction.atomic():
        hold(member.workspace)
        if Connection.objects.filter(workspace=member.workspace, name=name).exists():
            raise UserError("The name is taken.", fields={"name": "Another connection has this name."})
        made: Connection = Connection.objects.create(
            workspace=member.workspace,
            kind=kind,
            name=name,
            settings={name: text for name, text in told.items() if text},
            secret=sealed(secret.strip()),
        )
        record(
            member, "connection.create", made, change={"kind": [None, kind], **{key: [None, text] for key, text in made.settings.items()}}
        )
    return made


def remove(member: Member, connection: Connection) -> None:
    with transaction.atomic():
        record(member, "connection.delete", connection)
        connection.delete()


def attempt(member: Member, connection: Connection) -> str:
    """Asks the other side who is there; what it said, in a sentence. Raises UserError where it does not answer as it should."""
    with transaction.atomic():
        record(member, "connection.try", connection)
    if connection.kind != Connection.Kind.OPENAI:
        return elsewhere.attempt(connection)
    url = checked_address(connection.settings["url"], private=settings.PRIVATE_HOSTS)
    key = opened(connection.secret)
    try:
        with outgoing.client(private=settings.PRIVATE_HOSTS, timeout=PATIENCE) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = client.get(f"{url}/models", headers=headers, follow_redirects=False)
    except httpx.HTTPError as error:
        raise UserError(f"It does not answer ({type(error).__name__}). Look at the address.") from error
    if answer.status_code in (401, 403):
        raise UserError("It answers, and refuses the key.")
    if answer.status_code != 200:
        raise UserError(f"It answers with {answer.status_code}. Look at the address.")
    return f"It answers{_models(answer)}."


def _models(answer: httpx.Response) -> str:
    try:
        found: Any = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" and offers {len(found)} models" if isinstance(found, list) and len(found) != 1 else " and offers 1 model" if found else ""
