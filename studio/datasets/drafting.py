"""What a person changes in a version before it is saved, and saving it: the dataset's next version. How rows are written is `revising`'s.

Each change is stored at once, so that a reload or a closed laptop loses nothing. A person has one draft for each version.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import Max

from studio.audit.services import record
from studio.datasets import rows
from studio.datasets.changing import Changes, Row, Rule, within
from studio.datasets.messages import Unusable
from studio.datasets.models import DatasetVersion, Draft
from studio.datasets.shapes import canonical_json
from studio.datasets.typed import accepted, place_of
from studio.errors import UserError
from studio.orders.quotas import refuse_storage
from studio.orders.services import place
from studio.workspaces.models import Member, hold

LONGEST_NOTE = 500
NOTHING_CHANGED = "Nothing is changed. Edit, drop or add a row first."
GONE = "That row is not here any more. Look at the rows again."


@dataclass(frozen=True)
class Counts:
    """What saving a draft would do, in rows; a rule's fix counts for each row that it applies to."""

    changed: int = 0
    dropped: int = 0
    added: int = 0

    def as_words(self) -> str:
        told = [(self.changed, "changed"), (self.dropped, "dropped"), (self.added, "added")]
        return ", ".join(f"{number:,} {word}" for number, word in told if number) or "nothing changed"


def draft_of(member: Member, version: DatasetVersion) -> Draft | None:
    return Draft.objects.filter(version=version, created_by=member.user).first()


def changes_of(draft: Draft | None) -> Changes:
    return Changes.read(draft.changes) if draft else Changes()


def saved_as(draft: Draft | None) -> DatasetVersion | None:
    """The version that a draft is being saved as, or was to be."""
    pk = draft.changes.get("saved_as") if draft else None
    return DatasetVersion.objects.filter(pk=pk).select_related("order").first() if pk else None


def counts_of(version: DatasetVersion, changes: Changes) -> Counts:
    if not changes:
        return Counts()
    if not changes.rules:
        return Counts(len(changes.edited.keys() - changes.dropped), len(changes.dropped), len(changes.added))
    changed, dropped = changes.touched(rows.known_column(version.rows_path, "flags"))
    return Counts(len(changed), len(dropped), len(changes.added))


def row_of(version: DatasetVersion, index: int) -> dict[str, Any]:
    """One row as `rows.page` gives it. Raises UserError where there is none."""
    found = rows.page(version.rows_path, after=index - 1, limit=1) if 0 <= index < 2**62 else []
    if not found or found[0]["index"] != index:
        raise UserError(GONE)
    return found[0]


def edit_row(member: Member, version: DatasetVersion, index: int, typed: Row) -> None:
    """The row as somebody wants it. Raises UserError with the sentence beside its field."""
    before = row_of(version, index)["row"]
    row = judged(typed, version)

    def change(changes: Changes) -> None:
        changes.dropped.discard(index)
        changes.edited.pop(index, None)
        changes.kept.discard(index)
        if row != before:
            changes.edited[index] = row
        else:
            changes.kept.add(index)

    _change(member, version, change, {"edited": index + 1})


def add_row(member: Member, version: DatasetVersion, typed: Row) -> None:
    row = judged(typed, version)
    _change(member, version, lambda changes: changes.added.append(row), {"added": 1})


def add_rows(member: Member, version: DatasetVersion, judged_rows: list[Row]) -> int:
    """Rows as `judged` gave them, in one change; those that the draft adds already are left out. Returns how many came to it."""
    fresh: list[Row] = []

    def change(changes: Changes) -> None:
        known = {canonical_json(row) for row in changes.added}
        for row in judged_rows:
            if (written := canonical_json(row)) not in known:
                known.add(written)
                fresh.append(row)
        changes.added += fresh
        if not fresh:
            raise UserError("Your draft of these rows has them already.")

    _change(member, version, change, {"added": len(judged_rows)})
    return len(fresh)


def edit_added(member: Member, version: DatasetVersion, number: int, typed: Row) -> None:
    row = judged(typed, version)

    def change(changes: Changes) -> None:
        if not 0 <= number < len(changes.added):
            raise UserError(GONE)
        changes.added[number] = row

    _change(member, version, change, {"edited": f"added {number + 1}"})


def drop_added(member: Member, version: DatasetVersion, number: int) -> None:
    def change(changes: Changes) -> None:
        if not 0 <= number < len(changes.added):
            raise UserError(GONE)
        del changes.added[number]

    _change(member, version, change, {"dropped": f"added {number + 1}"})


def drop_rows(member: Member, version: DatasetVersion, indices: Iterable[int]) -> None:
    chosen = within(indices, version.facts["rows"] if version.facts else 0).tolist()
    if not chosen:
        raise UserError("Choose the rows to drop.")

    def change(changes: Changes) -> None:
        changes.dropped |= set(chosen)
        changes.kept -= set(chosen)

    _change(member, version, change, {"dropped": len(chosen)})


def restore_rows(member: Member, version: DatasetVersion, indices: Iterable[int]) -> None:
    """Takes back the last thing that was done to each row: first a drop, then an edit, then what a rule does."""
    chosen = within(indices, version.facts["rows"] if version.facts else 0).tolist()
    if not chosen:
        raise UserError("Choose the rows to bring back.")

    def change(changes: Changes) -> None:
        for index in chosen:
            if index in changes.dropped:
                changes.dropped.discard(index)
            elif index in changes.edited:
                del changes.edited[index]
            elif changes.rules:
                changes.kept.add(index)

    _change(member, version, change, {"restored": len(chosen)})


def set_rule(member: Member, version: DatasetVersion, *, finding: str, do: str, values: dict[str, str] | None = None) -> None:
    """What is done with all rows that have a finding; `keep` leaves them as they are."""
    rule = None if do == "keep" else Rule.read({"finding": finding, "do": do, "values": values})

    def change(changes: Changes) -> None:
        changes.rules = [other for other in changes.rules if other.finding.name != finding]
        if rule is not None:
            changes.rules.append(rule)

    _change(member, version, change, {"finding": finding, "do": do})


def discard(member: Member, version: DatasetVersion) -> None:
    with transaction.atomic():
        draft = _held(member, version)
        if draft is None:
            raise UserError(NOTHING_CHANGED)
        told = counts_of(version, changes_of(draft)).as_words()
        record(member, "draft.discard", version, change={"rows": [told, None]})
        draft.delete()


def judged(typed: Row, version: DatasetVersion) -> Row:
    """The canonical row, by the import's rules."""
    shape = (version.facts or {})["shape"]
    try:
        return accepted(typed, shape)
    except Unusable as problem:
        sentence = problem.text[:1].upper() + problem.text[1:]
        raise UserError("The row cannot be used.", fields={place_of(problem, typed, shape): sentence}) from problem


def newer_than(version: DatasetVersion) -> DatasetVersion | None:
    """The newest version, where it was made after this one and can be used."""
    later = DatasetVersion.objects.filter(dataset=version.dataset_id, number__gt=version.number).select_related("order__created_by")
    return next((found for found in later.order_by("-number") if found.status != "refused"), None)


def save(member: Member, version: DatasetVersion, *, note: str) -> DatasetVersion:
    """The person's draft as the dataset's next version, which a worker writes. The draft stays until that is done."""
    with transaction.atomic():
        draft = _held(member, version)
        changes = changes_of(draft)
        if draft is None or not changes:
            raise UserError(NOTHING_CHANGED)
        made = revise(member, version, changes, note=note)
        draft.changes = draft.changes | {"saved_as": str(made.pk)}
        draft.save()
    return made


def restore(member: Member, version: DatasetVersion, *, note: str = "") -> DatasetVersion:
    """An older version's rows as the newest version."""
    with transaction.atomic():
        if newer_than(version) is None:
            raise UserError("This is the newest version already.")
        return revise(member, version, Changes(), note=note or f"Back to version {version.number}.", restored=True)


def revise(member: Member, version: DatasetVersion, changes: Changes, *, note: str, restored: bool = False) -> DatasetVersion:
    """The next version of a dataset, to be written by a worker. Called inside a transaction."""
    if not version.is_ready:
        raise UserError("This version is not ready. Wait until it has been read.")
    refuse_storage(version.audit_client)
    hold(version.dataset)
    number = (DatasetVersion.objects.filter(dataset=version.dataset).aggregate(Max("number"))["number__max"] or 0) + 1
    order = place(member, kind="revision", client=version.audit_client)
    made: DatasetVersion = DatasetVersion.objects.create(
        dataset=version.dataset,
        number=number,
        filename=version.filename,
        parent=version,
        origin={"kind": "revision", "number": version.number, "restored": restored},
        note=plain_note(note),
        rules=version.rules,
        validation_percent=version.validation_percent,
        seed=version.seed,
        order=order,
    )
    if changes:
        path = changes_path(made)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(orjson.dumps(changes.as_dict()))
    told = counts_of(version, changes).as_words()
    record(
        member, "dataset.restore" if restored else "dataset.revise", made, change={"from": version.number, "rows": told, "note": made.note}
    )
    return made


def changes_path(version: DatasetVersion) -> Path:
    """Where the worker that writes a version reads what is changed."""
    return Path(settings.DATA_DIR, "orders", str(version.order_id), "changes.json")


def plain_note(note: str) -> str:
    text = " ".join(note.split())
    if len(text) > LONGEST_NOTE:
        raise UserError("The note is too long.", fields={"note": f"At most {LONGEST_NOTE} characters."})
    return text


def _change(member: Member, version: DatasetVersion, change: Callable[[Changes], None], told: dict[str, Any]) -> None:
    """Changes a person's draft, and says so in the history."""
    with transaction.atomic():
        hold(version)  # of two tabs that make the draft at once, one waits
        draft = _held(member, version) or Draft(version=version, created_by=member.user)
        changes = changes_of(draft)
        change(changes)
        changes.check_size()
        draft.changes = changes.as_dict()
        if changes:
            draft.save()
        elif not draft._state.adding:
            draft.delete()
        record(member, "draft.change", version, change=told)


def _held(member: Member, version: DatasetVersion) -> Draft | None:
    """The draft, locked until the transaction ends. Refused while it is being saved."""
    draft = Draft.objects.select_for_update().filter(version=version, created_by=member.user).first()
    saving = saved_as(draft)
    if saving is not None and saving.order.is_live:
        raise UserError(f"These changes are being saved as version {saving.number}. Wait until that is done.")
    return draft
