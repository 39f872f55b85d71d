"""Makes versions out of versions that are there: split anew, mixed, or without what a held-out set has. And says what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from django.db import transaction
from django.db.models import Max
from django.urls import reverse

from studio.audit.services import record
from studio.datasets import mixing, rows
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.services import create_dataset, plain_name, refuse_taken_name
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.quotas import held, refuse_storage
from studio.orders.services import place
from studio.workspaces.models import Member, Project, hold

COMPARED_SETS = 20
"""Versions of held-out sets, the newest first, that others are compared with."""
HELD_OUT = "This dataset is held out, for gates and comparisons: no run may train on it. Choose another dataset."
LONGEST_LICENSE = 80
IN_USE = "A run is training on this dataset. Wait for its end, or stop it first."


@dataclass(frozen=True, kw_only=True)
class Part:
    """A version to mix in: so many times its rows, or a share (per cent) of all rows to train on; never more than `most` rows."""

    version: DatasetVersion
    times: float | None = None
    share: float | None = None
    most: int | None = None

    @property
    def wish(self) -> mixing.Wish:
        split = (self.version.facts or {})["split"]
        return mixing.Wish(train=split["train"], validation=split["validation"], times=self.times, share=self.share, most=self.most)


@dataclass(frozen=True)
class Planned:
    """What one part gives, as it is shown before the mix is made."""

    part: Part
    taken: mixing.Taken
    percent: float
    """Of all rows to train on."""

    @property
    def repeated(self) -> int:
        """Rows to train on that are there more than once."""
        return max(0, self.taken.train - self.part.wish.train)


def planned(parts: Sequence[Part]) -> list[Planned]:
    """How many rows each part gives. Raises UserError where these cannot be mixed, or not in this way."""
    for part in parts:
        if not part.version.is_ready:
            raise UserError("A part is not ready.", fields={"parts": f"{part.version} has not been read. Choose another version."})
        if part.version.dataset.held_out:
            raise UserError("A part is held out.", fields={"parts": f"{part.version.dataset} is held out, so it cannot be mixed in."})
    if len({part.version.pk for part in parts}) < len(parts):
        raise UserError("A version stands there twice.", fields={"parts": "Choose each version once, and give it a number of times."})
    if len(shapes := {(part.version.facts or {})["shape"] for part in parts}) > 1:
        raise UserError("The parts differ.", fields={"parts": f"They have {' and '.join(sorted(shapes))} rows. Mix versions of one kind."})
    taken = mixing.check([part.wish for part in parts])
    train = sum(one.train for one in taken)
    return [Planned(part, one, round(100 * one.train / train, 1)) for part, one in zip(parts, taken, strict=True)]


def mix(
    member: Member,
    *,
    project: Project,
    parts: Sequence[Part],
    name: str = "",
    dataset: Dataset | None = None,
    seed: int = 42,
    without_held_out: bool = False,
) -> DatasetVersion:
    """A version made of several, of a new dataset called `name` or as the next one of `dataset`."""
    check_seed(seed)
    for part in parts:
        if part.version.audit_client.pk != project.client_id:
            raise UserError("A part is another client's.", fields={"parts": "Choose versions of this client."})
    if dataset is not None and dataset.project_id != project.pk:
        raise UserError("The dataset is another project's.", fields={"dataset": "Choose a dataset of this project."})
    plan = planned(parts)
    kept = sum(one.taken.validation for one in plan)
    origin = {
        "kind": "mix",
        "parts": [
            {
                "version": str(one.part.version.pk),
                "name": str(one.part.version),
                "times": one.part.times,
                "share": one.part.share,
                "most": one.part.most,
                "train": one.taken.train,
                "validation": one.taken.validation,
            }
            for one in plan
        ],
        "without": [str(version.pk) for version in held_out_sets(project)] if without_held_out else [],
    }
    with transaction.atomic():
        held(project.client)
        target = dataset or create_dataset(member, project=project, name=name)
        return _made(
            member,
            target,
            origin=origin,
            percent=round(100 * kept / sum(one.taken.rows for one in plan), 2),
            seed=seed,
            rules=joined_rules([part.version for part in parts]),
            label=" + ".join(str(part.version) for part in parts),
        )


def split_again(member: Member, version: DatasetVersion, *, percent: float, seed: int, near_duplicates: bool = True) -> DatasetVersion:
    """The same rows as the dataset's next version, with another split."""
    refuse_unready(version)
    if not 0 <= percent <= 50:
        raise UserError("The validation share is off.", fields={"validation_percent": "Must be from 0 to 50 per cent."})
    check_seed(seed)
    return _remade(
        member,
        version,
        origin={"kind": "split", "without": []},
        percent=percent,
        seed=seed,
        rules=version.rules | {"near_duplicates": near_duplicates},
    )


def leave_out_held_out(member: Member, version: DatasetVersion) -> DatasetVersion:
    """The same rows as the dataset's next version, without those that a held-out set of the client has too."""
    refuse_unready(version)
    if not (found := overlaps(version)):
        raise UserError("No held-out set has any of these rows.")
    return _remade(
        member,
        version,
        origin={"kind": "mix", "without": [str(other) for one in found for other in one.versions]},
        percent=version.validation_percent,
        seed=version.seed,
        rules=version.rules,
    )


def _remade(member: Member, version: DatasetVersion, *, origin: dict[str, Any], **settings: Any) -> DatasetVersion:
    split = (version.facts or {})["split"]
    part = {"version": str(version.pk), "name": str(version), "times": 1.0, "share": None, "most": None, **split}
    with transaction.atomic():
        return _made(member, version.dataset, origin=origin | {"parts": [part]}, parent=version, label=version.filename, **settings)


def _made(
    member: Member,
    dataset: Dataset,
    *,
    origin: dict[str, Any],
    percent: float,
    seed: int,
    rules: dict[str, Any],
    label: str,
    parent: DatasetVersion | None = None,
) -> DatasetVersion:
    """The next version, or the one that was made in the same way already. Called inside a transaction."""
    held(dataset.project.client)
    hold(dataset)
    wanted = {"origin": origin, "validation_percent": percent, "seed": seed, "rules": rules}
    for same in DatasetVersion.objects.filter(dataset=dataset, **wanted).select_related("order"):
        if same.is_ready or same.order.is_live:
            return same
    refuse_storage(dataset.project.client)
    number = (DatasetVersion.objects.filter(dataset=dataset).aggregate(Max("number"))["number__max"] or 0) + 1
    version: DatasetVersion = DatasetVersion.objects.create(
        dataset=dataset,
        number=number,
        filename=label[:255],
        parent=parent,
        order=place(member, kind="mix", client=dataset.project.client),
        **wanted,
    )
    record(member, "dataset.add_version", version, change={"parts": [None, [part["name"] for part in origin["parts"]]]})
    return version


def joined_rules(versions: Sequence[DatasetVersion]) -> dict[str, Any]:
    """What the split of a mix goes by: the columns that its parts had where they name only one; likenesses unless no part minded."""
    rules: dict[str, Any] = {"near_duplicates": any(version.rules.get("near_duplicates", True) for version in versions)}
    for name in ("stratify", "together"):
        if len(named := {column for version in versions if (column := version.rules.get(name))}) == 1:
            rules[name] = named.pop()
    return rules


def refuse_unready(version: DatasetVersion) -> None:
    if not version.is_ready:
        raise UserError("This version has not been read, so there is nothing to split.")


def check_seed(seed: int) -> None:
    if not 0 <= seed <= 4_294_967_295:
        raise UserError("The seed is off.", fields={"seed": "Seed must be 0 to 4 294 967 295."})


def update_dataset(
    member: Member, dataset: Dataset, *, name: str | None = None, held_out: bool | None = None, license: str | None = None
) -> None:
    """Renames a dataset; marks it as one that runs may not train on, or lets them again; says on what terms its rows may be used."""
    change: dict[str, Any] = {}
    if name is not None and (name := plain_name(name)) != dataset.name:
        change["name"] = [dataset.name, name]
    if held_out is not None and held_out != dataset.held_out:
        change["held_out"] = [dataset.held_out, held_out]
    if license is not None and (license := " ".join(license.split())) != dataset.license:
        if len(license) > LONGEST_LICENSE:
            raise UserError("The licence is too long.", fields={"license": f"At most {LONGEST_LICENSE} characters: its short name."})
        change["license"] = [dataset.license, license]
    if not change:
        return
    with transaction.atomic():
        hold(dataset.project)
        if "name" in change:
            refuse_taken_name(dataset.project, change["name"][1])
        if (
            held_out
            and "held_out" in change
            and Order.objects.filter(run__dataset_version__dataset=dataset, status__in=Order.LIVE).exists()
        ):
            raise UserError(IN_USE, fields={"held_out": IN_USE})
        for field, (_, value) in change.items():
            setattr(dataset, field, value)
        dataset.save(update_fields=list(change))
        record(member, "dataset.update", dataset, change=change)


def held_out_sets(project: Project, *, but: DatasetVersion | None = None) -> list[DatasetVersion]:
    """The newest versions of what is held out for the project's client."""
    found = DatasetVersion.objects.filter(dataset__held_out=True, dataset__project__client=project.client_id, facts__isnull=False)
    if but is not None:
        found = found.exclude(dataset=but.dataset_id)
    return list(found.select_related("dataset").order_by("-created_at")[:COMPARED_SETS])


@dataclass(frozen=True)
class Overlap:
    """Rows that a version would train on and a held-out set has too."""

    dataset: Dataset
    rows: int
    versions: tuple[str, ...]
    """The ids of the held-out set's versions that have them."""

    @property
    def sentence(self) -> str:
        many = f"{self.rows:,} rows to train on are" if self.rows != 1 else "1 row to train on is"
        return f"{many} also in {self.dataset}, which is held out: what is measured with it would look better than it is."

    @property
    def address(self) -> str:
        return reverse("datasets:detail", args=[self.dataset.pk])


def overlaps(version: DatasetVersion) -> list[Overlap]:
    """What held-out sets of the same client share with the rows that this version would train on."""
    if not version.is_ready or version.dataset.held_out:
        return []
    by_set: dict[Dataset, list[DatasetVersion]] = {}
    for other in held_out_sets(version.dataset.project, but=version):
        by_set.setdefault(other.dataset, []).append(other)
    found = []
    for dataset, versions in by_set.items():
        counted = shared(str(version.rows_path), tuple(str(one.rows_path) for one in versions))
        if counted:
            found.append(Overlap(dataset, counted, tuple(str(one.pk) for one in versions)))
    return found


@lru_cache(maxsize=256)
def shared(path: str, others: tuple[str, ...]) -> int:
    """How many rows to train on stand in other versions too. Versions never change, so it is counted once."""
    train = rows.column(Path(path), "hash")[rows.column(Path(path), "split") == "train"]
    held = np.concatenate([rows.column(Path(other), "hash") for other in others])
    return int(np.isin(train, held).sum())
