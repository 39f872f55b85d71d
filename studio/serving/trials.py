"""Asks a whole prompt set of several models, and keeps the table of what they answered."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import Http404
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.audit.services import record
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import place, request_stop
from studio.releases.models import Release
from studio.serving import trial_answers
from studio.serving.columns import KINDS, MOST, Column, client_of, column_of
from studio.serving.models import PromptSet, Trial
from studio.serving.subjects import subject_of
from studio.storage import remove_folder
from studio.training.orders import AskedModel, TrialPayload
from studio.workspaces.models import Client, Member, hold

MOST_TOKENS = 2_000_000
"""Of all answers together, if each were as long as it may be."""
LONGEST_ANSWER = 2048
"""Tokens."""


class AskedOf(BaseModel):
    """What every column is asked with, but a release, which has its own."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("", max_length=20_000)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=LONGEST_ANSWER)
    """Of each answer."""
    seed: int = Field(0, ge=0, le=4_294_967_295)


SENTENCES = {
    "system": "At most 20,000 characters.",
    "temperature": "Must be a number from 0 to 2.",
    "top_p": "Must be a number above 0 and at most 1.",
    "max_tokens": f"Must be a whole number from 1 to {LONGEST_ANSWER:,}.",
    "seed": "Must be a whole number from 0 to 4,294,967,295.",
}


def asked_of(told: dict[str, Any]) -> AskedOf:
    """The settings as they are stored. Raises UserError beside each that cannot be so."""
    if "\0" in str(told.get("system", "")):
        raise UserError("Some settings cannot be used.", fields={"system": "It holds the character NUL. Leave it out."})
    try:
        return AskedOf.model_validate(told)
    except ValidationError as problem:
        names = [str(fault["loc"][0]) for fault in problem.errors() if fault["loc"]]
        fields = {name: SENTENCES.get(name, "There is no such setting.") for name in names}
        raise UserError("Some settings cannot be used.", fields=fields) from problem


def begin(member: Member, *, prompts: PromptSet | Trial, columns: Sequence[Column], asked_with: AskedOf, name: str = "") -> Trial:
    """A trial in the queue: the prompts of a set, or of a trial that is asked once more. All is of one client, or of the workspace."""
    refuse_odd(prompts, columns, asked_with)
    client, kept = client_for(prompts, columns), [as_asked(column) for column in columns]
    with transaction.atomic():
        order = place(member, kind="trial", client=client)
        made: Trial = Trial.objects.create(
            workspace=member.workspace,
            client=client,
            order=order,
            name=name or prompts.name,
            prompt_set=prompts.pk if isinstance(prompts, PromptSet) else prompts.prompt_set,
            prompts=prompts.prompts,
            columns=kept,
            asked_with=asked_with.model_dump(),
        )
        titles = ", ".join(column["title"] for column in kept)
        record(member, "trial.create", made, change={"prompts": len(prompts.prompts), "columns": [None, titles[:400]]})
    return made


def as_asked(column: Column) -> dict[str, str]:
    """As the trial keeps it. Of a deployment also the release that answers there now: that one is asked, whatever is promoted meanwhile."""
    if not column.target.startswith("deployment:") or not isinstance(column.thing, Release):
        return column.kept
    release = column.thing
    title, note = f"{column.title} {release.version}", f"Deployment, with {release.name}"
    return column.kept | {"title": title, "note": note, "release": str(release.pk)}


def target_of(kept: dict[str, str]) -> str:
    """What a column was asked as: a deployment, the release that it had then."""
    return f"release:{kept['release']}" if "release" in kept else kept["target"]


def refuse_odd(prompts: PromptSet | Trial, columns: Sequence[Column], asked_with: AskedOf) -> None:
    if not columns:
        raise UserError("Choose who is asked.", fields={"columns": "Choose at least one model."})
    if len(columns) > MOST:
        raise UserError("There are too many columns.", fields={"columns": f"At most {MOST} models are asked at a time."})
    if len({column.target for column in columns}) < len(columns):
        raise UserError("A model stands there twice.", fields={"columns": "Choose each model once."})
    if (most := prompts.questions * len(columns) * asked_with.max_tokens) > MOST_TOKENS:
        sentence = (
            f"{prompts.questions * len(columns):,} answers could be {most:,} tokens, and {MOST_TOKENS:,} are kept. Make them shorter."
        )
        raise UserError("That would be too much to keep.", fields={"max_tokens": sentence})


def client_for(prompts: PromptSet | Trial, columns: Sequence[Column]) -> Client | None:
    """Whose trial it is. Nobody's questions are asked of another client's models."""
    client = client_of(columns)
    if prompts.client is not None and client is not None and prompts.client != client:
        raise UserError(
            "These models belong to another client than the prompts.", fields={"columns": f"Choose models of {prompts.client}."}
        )
    return client or prompts.client


def payload(trial: Trial, order: Order) -> TrialPayload:
    return TrialPayload(
        prompts=[prompt["turns"] for prompt in trial.prompts],
        columns=[model_of(column, trial.asked_with) for column in trial.columns],
        seed=trial.asked_with["seed"],
        cache=Path(settings.DATA_DIR, "cache", "serving", str(trial.workspace_id)),  # as the engine does: nothing is shared
        state=order.checkpoints,
    )


def model_of(kept: dict[str, str], asked_with: dict[str, Any]) -> AskedModel:
    """What the worker asks; without a folder where the model is gone since, or cannot answer."""
    kind, _, pk = target_of(kept).partition(":")
    found = everywhere(kind).filter(pk=pk).first()
    asked = {name: asked_with[name] for name in ("system", "temperature", "top_p", "max_tokens")}
    files = {"base": "", "adapter": ""}
    if found is not None:
        if isinstance(found, Release):  # it answers as it does for its client; an answer can only be shorter
            own = {name: value for name, value in found.asked_with.items() if value not in (None, "", [])}
            longest = min(own.pop("max_tokens", asked["max_tokens"]), asked["max_tokens"])
            asked = {"temperature": 0.0, "max_tokens": longest} | own
        try:
            subject = subject_of(found)
            files = {"base": subject["base"], "adapter": subject["adapter"]}
        except (UserError, Http404):
            files = {"base": "", "adapter": ""}
    return AskedModel.model_validate({"name": kept["title"]} | files | asked)


def everywhere(kind: str) -> Any:
    """Rows whoever asks: what a trial names was looked at when it was made."""
    return KINDS[kind]._base_manager.all()


def take_in(trial: Trial, folder: Path) -> None:
    """Keeps the answers that a worker left. Raises ValueError where they cannot be."""
    trial.answers = trial_answers.whole(trial, folder)
    trial.save(update_fields=["answers"])


def stop(member: Member, trial: Trial) -> None:
    """What has been answered by then is kept."""
    with transaction.atomic():
        request_stop(trial.order)
        record(member, "trial.stop", trial)


def delete_trial(member: Member, trial: Trial) -> None:
    """Its answers, its order and that one's files."""
    with transaction.atomic():
        order: Order = Order.objects.get(pk=trial.order_id)
        hold(order)
        order.refresh_from_db(fields=["status"])
        if order.is_live:
            raise UserError("This is still being asked. Stop it first, then delete it.")
        record(member, "trial.delete", trial, change={"prompts": [len(trial.prompts), 0]})
        folder = order.folder.parent  # an order that is deleted does not know its own any more
        trial.delete()
        order.delete()
        transaction.on_commit(lambda: remove_folder(folder))


def columns_again(member: Member, targets: Sequence[str]) -> list[Column]:
    """Those of an earlier trial or of an address that still answer for this member; the others are left out."""
    found = []
    for target in dict.fromkeys(targets):
        with suppress(Http404, UserError):
            found.append(column_of(member, target, action="prompts.edit"))
    return found
