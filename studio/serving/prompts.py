"""Prompt sets: questions that are asked together, again and again. Their limits, and every change of one."""

from collections.abc import Iterable
from typing import Any

from django.db import transaction

from studio.audit.services import record
from studio.datasets import rows
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.serving.models import PromptSet
from studio.workspaces.models import Client, Member, hold

MOST_PROMPTS, MOST_TURNS = 200, 8
LONGEST_TURN = 20_000
"""Characters."""
LONGEST_SET = 1_000_000
"""Characters of all questions together."""
LONGEST_CATEGORY, LONGEST_NAME = 60, 80

Prompt = dict[str, Any]
"""`{"turns": [text, ...], "category": text}`."""


def judged(turns: Any, category: Any = "") -> Prompt:
    """A prompt as it is kept. Raises UserError with a sentence that says what is wrong with it."""
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise UserError("The questions must be a list of texts.")
    kept = [turn.strip() for turn in turns]
    if not kept or not all(kept):
        raise UserError("A question is empty.")
    if len(kept) > MOST_TURNS:
        raise UserError(f"It has {len(kept)} questions, and a conversation has at most {MOST_TURNS}.")
    if too_long := next((turn for turn in kept if len(turn) > LONGEST_TURN), None):
        raise UserError(f"A question has {len(too_long):,} characters, and at most {LONGEST_TURN:,} fit.")
    if not isinstance(category, str | int | None):
        raise UserError("The category must be a text.")
    told = "" if category is None else str(category)
    if odd(told) or any(odd(turn, lines=True) for turn in kept):
        raise UserError("It holds control characters or half characters. Leave them out.")
    return {"turns": kept, "category": " ".join(told.split())[:LONGEST_CATEGORY]}


def odd(text: str, *, lines: bool = False) -> bool:
    """Whether it holds what no screen and no database takes; questions may have lines and tabs."""
    return any((ord(letter) < 32 and not (lines and letter in "\n\t\r")) or "\ud800" <= letter <= "\udfff" for letter in text)


def refuse_too_many(prompts: list[Prompt]) -> None:
    if not prompts:
        raise UserError("There is no prompt. Write at least one.", fields={"prompts": "Write at least one prompt."})
    if len(prompts) > MOST_PROMPTS:
        sentence = f"{len(prompts)} prompts, and a set has at most {MOST_PROMPTS}. Split them into several sets."
        raise UserError("There are too many prompts.", fields={"prompts": sentence})
    size = sum(len(turn) for prompt in prompts for turn in prompt["turns"])
    if size > LONGEST_SET:
        sentence = f"{size:,} characters, and a set has at most {LONGEST_SET:,} together. Split it into several sets."
        raise UserError("The prompts are too long.", fields={"prompts": sentence})


def judged_name(name: str) -> str:
    kept = " ".join(name.split())
    if not kept or len(kept) > LONGEST_NAME or odd(kept):
        raise UserError("The set needs a name.", fields={"name": f"Write a name of at most {LONGEST_NAME} characters."})
    return kept


def judged_all(told: Iterable[Prompt]) -> list[Prompt]:
    """All of them, or a UserError that names each that cannot be used by its number."""
    kept, wrong = [], {}
    for number, prompt in enumerate(told, start=1):
        try:
            kept.append(judged(prompt.get("turns"), prompt.get("category", "")))
        except UserError as problem:
            wrong[f"prompts.{number}"] = f"Prompt {number}: {problem.message}"
    if wrong:
        raise UserError("Some prompts cannot be used.", fields=wrong)
    refuse_too_many(kept)
    return kept


def create_set(member: Member, *, name: str, client: Client | None, prompts: list[Prompt]) -> PromptSet:
    """A set of one client, or of the whole workspace where `client` is None."""
    name, prompts = judged_name(name), judged_all(prompts)
    with transaction.atomic():
        made: PromptSet = PromptSet.objects.create(workspace=member.workspace, client=client, name=name, prompts=prompts, user=member.user)
        record(member, "prompt_set.create", made, change={"prompts": [0, len(prompts)]})
    return made


def change(member: Member, found: PromptSet, *, name: str | None = None, prompts: list[Prompt] | None = None) -> bool:
    """Another name, other prompts, or both. False where nothing is different."""
    name = None if name is None else judged_name(name)
    prompts = None if prompts is None else judged_all(prompts)
    with transaction.atomic():
        hold(found)
        found.refresh_from_db(fields=["name", "prompts"])
        return keep(member, found, prompts or found.prompts, name=name or found.name)


def keep(member: Member, found: PromptSet, prompts: list[Prompt], *, name: str = "") -> bool:
    """What a set that is held is to be. One record, whatever differs."""
    refuse_too_many(prompts)
    told: dict[str, Any] = {}
    if name and name != found.name:
        told["name"], found.name = [found.name, name], name
    if prompts != found.prompts:
        differs = sum(1 for old, new in zip(found.prompts, prompts, strict=False) if old != new)
        told |= {"prompts": [len(found.prompts), len(prompts)], "changed": differs}
        found.prompts = prompts
    if told:
        found.save(update_fields=["name", "prompts"])
        record(member, "prompt_set.edit", found, change=told)
    return bool(told)


def add(member: Member, found: PromptSet, prompts: list[Prompt]) -> None:
    """Puts more behind those that are there."""
    with transaction.atomic():
        hold(found)
        found.refresh_from_db(fields=["prompts"])
        keep(member, found, [*found.prompts, *judged_all(prompts)])


def edit_prompt(member: Member, found: PromptSet, number: int, *, turns: list[str], category: str) -> bool:
    """One prompt, by its number from 1. False where nothing is different."""
    prompt = judged(turns, category)
    with transaction.atomic():
        there = held_prompts(found, number)
        return keep(member, found, [*there[: number - 1], prompt, *there[number:]])


def drop_prompt(member: Member, found: PromptSet, number: int) -> None:
    with transaction.atomic():
        there = held_prompts(found, number)
        if len(there) == 1:
            raise UserError("This is the last prompt. Delete the set instead.")
        keep(member, found, [*there[: number - 1], *there[number:]])


def held_prompts(found: PromptSet, number: int) -> list[Prompt]:
    hold(found)
    found.refresh_from_db(fields=["prompts"])
    if not 1 <= number <= len(found.prompts):
        raise UserError("That prompt is not here any more. Look at the set again.")
    there: list[Prompt] = found.prompts
    return there


def copy_set(member: Member, found: PromptSet) -> PromptSet:
    """Another one with the same prompts, for the same client."""
    name = f"{found.name[: LONGEST_NAME - 5]} copy"
    with transaction.atomic():
        made: PromptSet = PromptSet.objects.create(
            workspace=member.workspace, client=found.client, name=name, prompts=found.prompts, user=member.user
        )
        record(member, "prompt_set.copy", made, change={"from": [None, found.name]})
    return made


def delete_set(member: Member, found: PromptSet) -> None:
    """Its trials keep their own copies of the prompts."""
    with transaction.atomic():
        record(member, "prompt_set.delete", found, change={"prompts": [len(found.prompts), 0]})
        found.delete()


def held_out_questions(version: DatasetVersion) -> list[Prompt]:
    """The first question of each held-out row, each once. Raises UserError where there are none."""
    if not version.is_ready or (version.facts or {})["shape"] != "chat":
        raise UserError("Only a dataset of conversations has questions.", fields={"version": "Choose a dataset of conversations."})
    found: dict[str, Prompt] = {}
    for page in rows.page(version.rows_path, split="validation", limit=MOST_PROMPTS):
        first = next((message["content"] for message in page["row"]["messages"] if message["role"] == "user"), "")
        if 0 < len(first.strip()) <= LONGEST_TURN and isinstance(first, str):
            found.setdefault(first.strip(), {"turns": [first.strip()], "category": ""})
    if not found:
        raise UserError("No held-out row has a question.", fields={"version": "None of its held-out rows has a question. Choose another."})
    return list(found.values())
