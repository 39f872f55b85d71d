"""Has a model write rows for a dataset, and keeps what a person decides about each. Nothing is mixed in unseen."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from django.conf import settings
from django.db import transaction

from studio.audit.services import record
from studio.datasets import drafting, rows
from studio.datasets.changing import Changes, Row
from studio.datasets.models import DatasetVersion, RowMark, Synthesis, SyntheticRow
from studio.datasets.writers import Writer, writers_for
from studio.errors import UserError
from studio.orders.services import place, request_stop
from studio.workspaces.models import Member, Workspace, hold

MOST_ROWS, MOST_SEEDS = 500, 50
LONGEST_INSTRUCTION = 4000
State = SyntheticRow.State


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be written, as it was typed."""

    writer: str = ""
    """The key of a writer; empty takes the first that there is."""
    instruction: str = ""
    target: int = 20
    seeds: int = 12
    """How many rows of the version show what is wanted."""
    starred: bool = False
    """Only rows that were marked as good examples."""
    temperature: float = 0.9
    model: str = ""
    """For an endpoint, where it is another than the connection names."""
    seed: int = 42

    def refuse_odd(self) -> None:
        wrong: dict[str, str] = {}
        if not 1 <= self.target <= MOST_ROWS:
            wrong["target"] = f"From 1 to {MOST_ROWS} rows."
        if not 0 <= self.seeds <= MOST_SEEDS:
            wrong["seeds"] = f"From 0 to {MOST_SEEDS} rows."
        if not 0 <= self.temperature <= 2:
            wrong["temperature"] = "From 0 to 2."
        if len(self.instruction) > LONGEST_INSTRUCTION:
            wrong["instruction"] = f"At most {LONGEST_INSTRUCTION} characters."
        if not self.instruction.strip() and not self.seeds:
            wrong["instruction"] = "Say what you want, or show it by some rows."
        if wrong:
            raise UserError("The rows cannot be asked for like this.", fields=wrong)


def begin(member: Member, version: DatasetVersion, wish: Wish) -> Synthesis:
    """Asks for rows; a worker has them written."""
    wish.refuse_odd()
    shape = shape_of(version)
    writer = chosen(member, version, wish.writer)
    if writer.connection and not (wish.model or writer.connection.settings.get("model")):
        raise UserError("Which model?", fields={"model": "Name the endpoint's model."})
    indices = seeds_of(version, wish)
    if wish.starred and not indices:
        raise UserError("No row is marked.", fields={"starred": "Mark good examples among the rows first, or let some be chosen."})
    with transaction.atomic():
        order = place(member, kind="synthesis", client=version.audit_client)
        made: Synthesis = Synthesis.objects.create(
            dataset=version.dataset,
            version=version,
            connection=writer.connection,
            settings={
                "writer": writer.key,
                "name": writer.name,
                "base": writer.base,
                "adapter": writer.adapter,
                "context": writer.context,
                "model": wish.model,
                "instruction": wish.instruction.strip(),
                "target": wish.target,
                "temperature": wish.temperature,
                "seed": wish.seed,
                "seeds": indices,
                "shape": shape,
            },
            order=order,
        )
        record(member, "synthesis.create", made, change={"writer": [None, writer.name], "target": [None, wish.target]})
    return made


def shape_of(version: DatasetVersion) -> str:
    if not version.is_ready:
        raise UserError("This version is not ready. Wait until it has been read.")
    shape: str = (version.facts or {})["shape"]
    if shape not in ("chat", "text"):
        raise UserError("Rows with a better and a worse answer cannot be written by a model. Use a dataset of chats or texts.")
    return shape


def chosen(member: Member, version: DatasetVersion, key: str) -> Writer:
    found = next((writer for writer in writers_for(member, version.audit_client) if key in ("", writer.key)), None)
    if found is None:
        raise UserError("Choose who writes.", fields={"writer": "Choose a model or an endpoint of this list."})
    return found


def seeds_of(version: DatasetVersion, wish: Wish) -> list[int]:
    """Indices of the rows that show what is wanted: marked ones, or some of those that are trained on."""
    if wish.starred:
        marked = RowMark.objects.filter(dataset=version.dataset_id, mark=RowMark.Mark.STAR).values_list("row_hash", flat=True)
        hashes = np.array(list(marked), dtype=np.int64).view(np.uint64)
        there = np.flatnonzero(np.isin(rows.column(version.rows_path, "hash"), hashes))
    else:
        there = np.flatnonzero(rows.column(version.rows_path, "split") == "train")
    indices = there.tolist()
    return sorted(random.Random(wish.seed).sample(indices, min(wish.seeds, len(indices))))


def seed_rows(synthesis: Synthesis) -> list[Row]:
    indices = np.array(synthesis.settings["seeds"], dtype=np.int64)
    if synthesis.version is None or not len(indices):
        return []
    return [found["row"] for found in rows.page(synthesis.version.rows_path, wanted=indices, limit=MOST_SEEDS)]


def take_in(synthesis: Synthesis, folder: Path) -> None:
    """The rows that were written, each waiting for a person."""
    with (folder / "rows.jsonl").open("rb") as file:
        found = [SyntheticRow(synthesis=synthesis, number=number, row=orjson.loads(line)) for number, line in enumerate(file, start=1)]
    SyntheticRow.objects.bulk_create(found)


def stop(member: Member, synthesis: Synthesis) -> None:
    with transaction.atomic():
        request_stop(synthesis.order)
        record(member, "synthesis.stop", synthesis)


def decide(member: Member, synthesis: Synthesis, number: int, *, do: str) -> None:
    """accept, reject, or wait, which takes either back."""
    states = {"accept": State.ACCEPTED, "reject": State.REJECTED, "wait": State.WAITING}
    if do not in states:
        raise UserError("Choose what to do with the row.")
    with transaction.atomic():
        row = row_of(synthesis, number)
        before, row.state, row.decided_by = row.state, states[do], member.user
        row.save(update_fields=["state", "decided_by"])
        record(member, "synthesis.decide", synthesis, change={f"row {number}": [before, row.state]})


def edit(member: Member, synthesis: Synthesis, number: int, typed: Row) -> None:
    """The row as a person wants it, which accepts it. Raises UserError with the sentence beside its field."""
    if synthesis.version is None:
        raise UserError("The version that the rows were for is gone.")
    judged = drafting.judged(typed, synthesis.version)
    with transaction.atomic():
        row = row_of(synthesis, number)
        row.edited = row.edited or judged != row.row
        row.row, row.state, row.decided_by = judged, State.ACCEPTED, member.user
        row.save()
        record(member, "synthesis.edit", synthesis, change={"row": number})


def row_of(synthesis: Synthesis, number: int) -> SyntheticRow:
    found = SyntheticRow.objects.filter(synthesis=synthesis, number=number).exclude(state=State.SAVED).first()
    if found is None:
        raise UserError("That row is not here any more. Look at the rows again.")
    return found


def decide_all(member: Member, synthesis: Synthesis, *, do: str) -> int:
    """Accepts or rejects what still waits; returns how many rows."""
    states = {"accept": State.ACCEPTED, "reject": State.REJECTED}
    if do not in states:
        raise UserError("Choose what to do with the rows.")
    with transaction.atomic():
        waiting = SyntheticRow.objects.filter(synthesis=synthesis, state=State.WAITING)
        count = waiting.update(state=states[do], decided_by=member.user)
        record(member, "synthesis.decide", synthesis, change={"all that waited": [count, states[do]]})
    return count


def save(member: Member, synthesis: Synthesis, *, note: str) -> DatasetVersion:
    """What was accepted, added to the dataset's newest version as the next one."""
    with transaction.atomic():
        hold(synthesis)
        accepted = list(SyntheticRow.objects.filter(synthesis=synthesis, state=State.ACCEPTED))
        if not accepted:
            raise UserError("No row is accepted. Accept some first.")
        ready = synthesis.dataset.versions.filter(facts__isnull=False).order_by("-number").first()
        if ready is None:
            raise UserError("The dataset has no version that rows could be added to.")
        if shape_of(ready) != synthesis.settings["shape"]:
            raise UserError("The dataset's newest version has rows of another kind.")
        told = note or f"{len(accepted)} row{'s' if len(accepted) > 1 else ''} written by {synthesis.settings['name']}"
        made = drafting.revise(member, ready, Changes(added=[row.row for row in accepted]), note=told)
        SyntheticRow.objects.filter(pk__in=[row.pk for row in accepted]).update(state=State.SAVED)
    return made


def counts(synthesis: Synthesis) -> dict[str, int]:
    found: dict[str, int] = dict.fromkeys(State.values, 0)
    for state in SyntheticRow.objects.filter(synthesis=synthesis).values_list("state", flat=True):
        found[state] += 1
    return found


def cache_folder(workspace: Workspace) -> Path:
    """Where what answers for this workspace keeps its files as well."""
    return Path(settings.DATA_DIR, "cache", "serving", str(workspace.pk))


def endpoint_of(synthesis: Synthesis) -> dict[str, Any]:
    """What of a connection the worker's order tells; nothing where a model of the studio writes."""
    if not synthesis.settings["writer"].startswith("connection:"):
        return {}
    if synthesis.connection is None:
        raise UserError("The connection was removed. Ask again with another one.")
    named = synthesis.connection.settings
    return {"url": named["url"], "model": synthesis.settings["model"] or named.get("model", ""), "private": settings.PRIVATE_HOSTS}
