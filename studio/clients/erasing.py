"""Erases a client: all of its rows and files, for good, and seals a certificate of what was there.

First the rows go, with the paths that they named noted on the erasure in the same transaction; then the files; then what the database
still holds of deleted rows. Killed anywhere in between, the erasure stays open and is finished by the hourly sweep or by asking again:
every step may be done twice.
"""

import hashlib
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from studio.audit.services import record
from studio.clients.disk import SERVED, Disk
from studio.clients.holdings import FORGET, HOLDINGS, KEPT, Holding
from studio.clients.life import live_orders, stop_all
from studio.errors import UserError
from studio.orders import storedays
from studio.orders.models import Order, Usage
from studio.serving import rollup, words
from studio.serving.forgetting import forget
from studio.storage import remove_folder
from studio.workspaces.models import ApiKey, Client, Erasure, Invitation, Member, hold
from studio.workspaces.services import refuse_last_client

log = logging.getLogger(__name__)
AT_ONCE = 500
"""Orders whose events are deleted in one transaction: others write meanwhile."""
TRACKERS = {"mlflow", "tensorboard"}
"""Those that keep a folder for each run in one for each project."""
EXPERIMENT = {"meta.yaml", "tags"}
"""What MLflow has in the folder of an experiment without a run."""
PATIENCE = 5.0
"""Seconds that are waited for readers of SQLite's log to end."""
ELSEWHERE = (
    "Copies outside the studio are not reached from here: backups, what was downloaded or delivered, and what trackers on other servers "
    "were told."
)
TRACKED = (
    "Trackers on this machine are reached where a folder or a file bears the id of a run or of its project, and in MLflow's folders. "
    "Trackio's file of a project is not reached where it is older than these ids in its name."
)
DATABASES = {
    "sqlite": "The database file was rewritten without what had been deleted, and its log was emptied.",
    "postgresql": (
        "The tables were vacuumed: what was deleted can be read by no query, and its place is written over as new rows come. "
        "PostgreSQL's own log and its backups keep it until they expire."
    ),
}


def erase(member: Member, client: Client, *, typed: str, reason: str = "") -> Erasure:
    """Begins to erase a client, or goes on where it was cut short. The work is done once the transaction around it has ended."""
    erasure: Erasure | None
    measured = []
    if not Erasure.objects.filter(client=client.pk, finished_at=None).exists():
        refuse(client, typed=typed)
        measured = everything_measured(client)  # takes minutes of a large client, in which others write
    with transaction.atomic():
        hold(client.workspace)
        erasure = Erasure.objects.filter(client=client.pk, finished_at=None).first()
        if erasure is None:
            refuse(client, typed=typed)
            erasure = Erasure.objects.create(
                workspace=client.workspace,
                client=client.pk,
                client_name=client.name,
                reason=reason.strip()[:2000],
                erased_by=member.user,
                certificate={"by": member.user.email, "erased": measured},
            )
            narrow(client)
            Client.objects.filter(pk=client.pk, archived_at=None).update(archived_at=timezone.now())
            record(member, "client.erase", client, change={"certificate": [None, str(erasure.pk)]})
        begun = erasure
        transaction.on_commit(lambda: finish_or_leave(begun))
    begun.refresh_from_db()
    return begun


def refuse(client: Client, *, typed: str) -> None:
    if not Client.objects.filter(pk=client.pk).exists():
        raise UserError("This client has just been erased.")
    if typed != client.name:
        raise UserError("The name does not match, so nothing was erased.", fields={"name": f"Type {client.name} as it stands here."})
    if (live := live_orders(client).count()) > 0:
        some = "1 order runs or waits" if live == 1 else f"{live} orders run or wait"
        raise UserError(f"{some} for this client. Stop what is live, or wait until it has ended, then erase the client.")
    if Client.objects.filter(workspace=client.workspace_id).count() == 1:
        raise UserError("This is the workspace's only client, and a workspace has at least one. Make another one first.")
    if client.archived_at is None:
        refuse_last_client(client, "erased")


def narrow(client: Client) -> None:
    """Whoever reached only some clients reaches no more than before once this one is gone; what reached this one alone ends."""
    only = {"clients": client, "revoked_at": None}
    now = timezone.now()
    for model in (Member, ApiKey, Invitation):
        rows: QuerySet[Any] = model._base_manager.filter(clients=client)
        rows.filter(pk__in=[*rows.values_list("pk", flat=True)]).update(narrowed=True)
    for model in (ApiKey, Invitation):
        alone = [row.pk for row in model._base_manager.filter(**only).prefetch_related("clients") if len(row.clients.all()) == 1]
        model._base_manager.filter(pk__in=alone).update(revoked_at=now)


def everything_measured(client: Client) -> list[dict[str, Any]]:
    """A line for each kind. A file is counted once: versions share those of rows that did not change, orders what became artifacts."""
    disk, seen = Disk(), set[tuple[int, int]]()
    return [measured_of(holding, client, disk, seen) for holding in HOLDINGS if not holding.stays]


def measured_of(holding: Holding, client: Client, disk: Disk, seen: set[tuple[int, int]]) -> dict[str, Any]:
    """One line of the certificate: how many rows there are, how many files of how many bytes, and what they hash to."""
    rows, files, size, hashes = 0, 0, 0, []
    if holding.bulky or not (holding.has_files or holding.hashed):
        rows = holding.rows(client).count()
    else:
        for row in holding.rows(client).iterator():
            rows += 1
            if holding.hashed and (digest := getattr(row, holding.hashed)):
                hashes.append(digest)
            for path in files_at(holding.files(row, disk)):
                facts = path.lstat()
                if (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    files, size = files + 1, size + facts.st_size
    told: dict[str, Any] = {"name": holding.name, "title": holding.title, "rows": rows, "files": files, "bytes": size}
    return told | ({"sha256": sorted(set(hashes))} if holding.hashed else {})


def files_at(paths: Iterable[Path]) -> Iterable[Path]:
    """Below these, without what is removed at this moment."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            yield from (each for each in path.rglob("*") if each.is_file() or each.is_symlink())
        elif path.exists() or path.is_symlink():
            yield path


def finish_or_leave(erasure: Erasure) -> None:
    """What the disk or the database refuses now, the sweep tries again: the erasure has begun all the same."""
    try:
        finish(erasure)
    except (OSError, OperationalError):
        log.exception("Erasing %s was cut short; the hourly sweep goes on with it.", erasure.client)


def finish(erasure: Erasure) -> None:
    """Does what is left of an erasure. Where something holds on to it, such as a reader of the database's log, the next sweep goes on."""
    if erasure.paths is None:
        drop_rows(erasure)
    remove_files(erasure)
    if forget_models(erasure) and scrub():
        seal(erasure)


@dataclass
class Gathered:
    """The ids of a client's rows, and where their files are."""

    ids: set[str] = field(default_factory=set)
    paths: set[Path] = field(default_factory=set)

    def add(self, client: Client) -> None:
        """Every row that is not known yet, and what it names."""
        disk, new = Disk(), {str(client.pk)} - self.ids
        for holding in HOLDINGS:
            if holding.bulky or holding.stays:
                continue
            rows = holding.rows(client)
            late = [pk for pk in rows.values_list("pk", flat=True) if str(pk) not in self.ids]
            new.update(str(pk) for pk in late)
            for begin in range(0, len(late) if holding.has_files else 0, AT_ONCE):
                for row in rows.filter(pk__in=late[begin : begin + AT_ONCE]):
                    self.paths.update(path for path in holding.files(row, disk) if path.exists() or path.is_symlink())
        if new:
            self.paths.update(disk.naming(new))
        self.ids |= new


def drop_rows(erasure: Erasure) -> None:
    """Deletes the rows of the client, the client itself last, and notes where its files are."""
    client = Client.objects.filter(pk=erasure.client).select_related("workspace").first()
    if client is None:  # another has just done it
        erasure.refresh_from_db()
        return
    if stop_all(client):
        raise UserError("Something of this client was started just now, and is being stopped. The rest is erased within the hour.")
    zero_what_is_deleted()
    rollup.take_all(client)
    for holding in HOLDINGS:
        if holding.bulky:
            drop_in_pieces(holding, client)
    gathered = Gathered()
    gathered.add(client)  # before the transaction: others write while the disk is looked through
    with transaction.atomic():
        hold(erasure)
        erasure.refresh_from_db()
        if erasure.paths is not None:  # another has done it meanwhile
            return
        hold(client, to_delete=True)
        gathered.add(client)  # what came since
        Usage.objects.filter(client=client).update(client=None, project=None, order=None, title="")
        storedays.let_go(client)
        rollup.let_go(client)
        for also in FORGET:
            also(client, gathered.ids)
        for holding in HOLDINGS:
            if not holding.stays:
                holding.rows(client).delete()
        Client.objects.filter(pk=client.pk).delete()
        erasure.paths = sorted(str(path.relative_to(settings.DATA_DIR)) for path in gathered.paths)
        erasure.save(update_fields=["paths"])


def drop_in_pieces(holding: Holding, client: Client) -> None:
    """What there is a great deal of goes some orders at a time, for one long transaction would keep everybody else from writing."""
    owner = holding.client.partition("__")[0]
    owners = [*holding.rows(client).order_by().values_list(owner, flat=True).distinct()]
    for begin in range(0, len(owners), AT_ONCE):
        rows: QuerySet[Any] = holding.model._base_manager.filter(**{f"{owner}__in": owners[begin : begin + AT_ONCE]})
        rows.delete()


def remove_files(erasure: Erasure) -> None:
    for name in erasure.paths or []:
        path = Path(settings.DATA_DIR, name)
        while path.exists() or path.is_symlink():
            with suppress(FileNotFoundError):  # a sweep does the same at this moment
                remove_folder(path)
        remove_empty(path.parent)


def remove_empty(folder: Path) -> None:
    """The folder in which a tracker keeps the runs of a project, or of projects of the same name, once none is left."""
    top, tracker = folder.parent.parent, folder.parent.name
    if top == Path(settings.DATA_DIR, "trackers") and tracker in TRACKERS and folder.is_dir():
        with suppress(FileNotFoundError):
            if all(path.name in EXPERIMENT for path in folder.iterdir()):
                remove_folder(folder)


def forget_models(erasure: Erasure) -> bool:
    """False where the process that answers could not be told yet."""
    hashes = [line.get("sha256", []) for line in erasure.certificate["erased"] if line["name"] == "artifacts"]
    return forget([digest[:SERVED] for some in hashes for digest in some])


def zero_what_is_deleted() -> None:
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA secure_delete=ON")


def scrub() -> bool:
    """Takes out of the database's files what deleted rows have left in them. False where it has to be tried again later."""
    with connection.cursor() as cursor:
        if connection.vendor != "sqlite":
            quote = connection.ops.quote_name
            cursor.execute(f"VACUUM {', '.join(quote(model._meta.db_table) for model in tables())}")
            words.write_anew(connection)
            return True
        words.let_go(connection)
        if Order.objects.filter(status__in=Order.ACTIVE).exists():  # workers must be able to write while the file is rewritten
            return False
        try:
            cursor.execute("VACUUM")  # also what was deleted at other times
        except OperationalError:  # somebody writes
            return False
        until = time.monotonic() + PATIENCE
        while True:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy = bool(cursor.fetchone()[0])
            if not busy or time.monotonic() > until:
                return not busy
            time.sleep(0.05)


def tables() -> list[type[Model]]:
    return [*(holding.model for holding in HOLDINGS), Usage, Client]


def seal(erasure: Erasure) -> None:
    """Writes the certificate and its hash, once."""
    now = timezone.now()
    with transaction.atomic():
        hold(erasure)
        erasure.refresh_from_db()
        if erasure.finished_at is not None:  # a sweep was faster
            return
        certificate = {
            "certificate": str(erasure.pk),
            "workspace": {"id": str(erasure.workspace_id), "name": erasure.workspace.name},
            "client": {"id": str(erasure.client), "name": erasure.client_name},
            "by": erasure.certificate["by"],
            "reason": erasure.reason,
            "asked_at": erasure.erased_at.isoformat(),
            "finished_at": now.isoformat(),
            "erased": [line for line in erasure.certificate["erased"] if line["rows"] or line["files"]],
            "kept": [*KEPT.values(), TRACKED, ELSEWHERE],
            "database": DATABASES[connection.vendor],
        }
        erasure.certificate, erasure.sha256 = certificate, sha256_of(certificate)
        erasure.finished_at, erasure.paths = now, []
        erasure.save(update_fields=["certificate", "sha256", "finished_at", "paths"])


def sha256_of(certificate: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(certificate)).hexdigest()


def canonical(certificate: dict[str, Any]) -> bytes:
    """The bytes that a certificate's hash is of: JSON with its keys sorted and no spaces."""
    return orjson.dumps(certificate, option=orjson.OPT_SORT_KEYS)


def finish_all() -> list[str]:
    """The hourly sweep: goes on with what was cut short. Returns what it did, in words."""
    did = []
    for erasure in Erasure.objects.filter(finished_at=None).select_related("workspace"):
        try:
            finish(erasure)
        except UserError as error:
            did.append(f"Erasing {erasure.client}: {error.message}")
        except Exception:
            log.exception("Erasing %s was cut short; the next sweep goes on with it.", erasure.client)
            did.append(f"Erasing {erasure.client}: cut short by an error")
        else:
            did.append(f"Erasing {erasure.client}: {'finished' if erasure.finished_at else 'not finished yet'}")
    return did


def certificates(who: Any) -> "QuerySet[Erasure]":
    """The erasures that somebody may read; none for whoever sees only some of the clients."""
    member = who if isinstance(who, Member) else getattr(who, "member", None)
    found: QuerySet[Erasure] = Erasure.objects.for_action(who, "client.erase").select_related("erased_by", "workspace")
    return found if member is not None and member.client_ids() is None else found.none()
