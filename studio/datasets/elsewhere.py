"""Files of examples that lie elsewhere: which a hub's dataset offers, how large an object of a store is, and having one fetched.

Only what holds rows and nothing else is offered: no scripts, no pickles. What is offered is pinned: to a commit, to an object's ETag.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
import orjson
from django.conf import settings
from django.db import transaction

from studio import outgoing
from studio.datasets import uploading
from studio.datasets.models import Connection, Upload
from studio.errors import UserError
from studio.orders.services import place
from studio.training.orders import FetchPayload, Remote
from studio.workspaces.models import Member, Project
from studio.workspaces.secrets import opened

if TYPE_CHECKING:
    from obstore.store import S3Config

PUBLIC_HUB = "https://huggingface.co"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REVISION = re.compile(r"[\w][\w./-]{0,79}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SAFE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|xlsx|txt|md)(\.gz|\.zst|\.zip)?$", re.IGNORECASE)
LICENSE = re.compile(r"license:[a-z0-9.+-]{1,60}")
NO_ROWS = re.compile(r"(^|/)(readme|license|licence|changelog|requirements|dataset_infos|\.[^/]*)[^/]*$", re.IGNORECASE)
SHARD = re.compile(r"[-_.]?\d{3,6}-of-\d{3,6}(?=\.)")
JOINS = {"jsonl": "lines", "ndjson": "lines", "txt": "lines", "md": "lines", "parquet": "parquet"}
"""How files of a kind are put behind each other; of any other kind one is taken alone."""
LARGEST_ANSWER = 16 << 20
MOST_FILES = 200
MOST_SHARDS = 500
PATIENCE = httpx.Timeout(15, connect=5)
SIGNED = timedelta(hours=6)
"""How long the address of an object holds, which is how long fetching it may take."""
STORES = (Connection.Kind.S3, Connection.Kind.GCS)
GOOGLE = "https://storage.googleapis.com"


@dataclass(frozen=True)
class Offer:
    """One file, or the parts of one split."""

    name: str
    files: tuple[str, ...]
    size: int
    join: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A hub's dataset at one commit."""

    repository: str
    revision: str
    """As it was asked for."""
    commit: str
    offers: tuple[Offer, ...]
    files: dict[str, dict[str, Any]]
    """`{name: {"size": bytes, "sha256": hash or ""}}`."""
    license: str = ""
    """As the hub names it; empty where it names none."""


def hub_url() -> str:
    return (settings.HUB_URL or PUBLIC_HUB).rstrip("/")


def allowed_hosts(*urls: str) -> list[str]:
    """The operator's own choices: what they allow, and the hub that they named."""
    return [*settings.PRIVATE_HOSTS, *(urlsplit(url).netloc for url in urls)]


def connections(member: Member, *kinds: str) -> list[Connection]:
    """The places that a member may fetch from; their secrets stay with the server."""
    found: Iterable[Connection] = Connection.objects.for_action(member, "dataset.create").filter(kind__in=kinds)
    return list(found)


# ── A hub ──


def look_at_hub(repository: str, *, revision: str = "", connection: Connection | None = None) -> Snapshot:
    """What a dataset offers at a revision, which is pinned to its commit. Raises UserError where there is nothing to fetch."""
    repository, revision = repository.strip().removeprefix(f"{hub_url()}/datasets/").strip("/"), revision.strip() or "main"
    if not HUB_NAME.fullmatch(repository) or ".." in repository:
        raise UserError("The name is off.", fields={"repository": "Write it as owner/name, as it stands on the dataset's page."})
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise UserError("The revision is off.", fields={"revision": "Write a branch, a tag or a commit."})
    told = ask_hub(f"/api/datasets/{repository}/revision/{quote(revision, safe='')}?blobs=true", repository, connection=connection)
    commit = str(told.get("sha", ""))
    if not COMMIT.fullmatch(commit):
        raise UserError(f"The hub at {hub_url()} does not say which commit {revision} is. Look at its address.")
    files = {name: facts for name, facts in map(described, told.get("siblings") or []) if name}
    offers = offered(files)
    if not offers:
        raise UserError(f"{repository} holds no file of rows that is safe to read. {what_is_read(told)}")
    return Snapshot(repository, revision, commit, tuple(offers), files, license_of(told))


def license_of(told: dict[str, Any]) -> str:
    tags = [tag for tag in told.get("tags") or [] if isinstance(tag, str) and LICENSE.fullmatch(tag)]
    return ", ".join(tag.removeprefix("license:") for tag in tags)[:80]


def what_is_read(told: dict[str, Any]) -> str:
    names = [str(sibling.get("rfilename", "")) for sibling in told.get("siblings") or [] if isinstance(sibling, dict)]
    scripts = " It has a loading script, which is never run." if any(name.endswith(".py") for name in names) else ""
    return f"JSONL, JSON, CSV, Parquet, Arrow, Excel and text are read.{scripts}"


def ask_hub(path: str, repository: str, *, connection: Connection | None) -> dict[str, Any]:
    token = opened(connection.secret) if connection else ""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with (
            outgoing.client(private=allowed_hosts(hub_url()), timeout=PATIENCE) as client,
            client.stream("GET", hub_url() + path, headers=headers) as answer,
        ):
            refuse_hub(answer, repository, signed_in=bool(token))
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > LARGEST_ANSWER:
                    raise UserError(f"{repository} has too many files to list.")
        told: dict[str, Any] = orjson.loads(bytes(content))
    except (httpx.HTTPError, orjson.JSONDecodeError) as error:
        raise UserError(f"The hub at {hub_url()} does not answer ({type(error).__name__}). Try again later.") from error
    if not isinstance(told, dict):
        raise UserError(f"The hub at {hub_url()} does not answer as a hub does. Look at its address.")
    return told


def refuse_hub(answer: httpx.Response, repository: str, *, signed_in: bool) -> None:
    if answer.status_code == 200:
        return
    code = answer.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        raise UserError(f"{repository} is gated. Accept its terms on the hub, then connect Hugging Face with your token in Settings.")
    if code == "RevisionNotFound":
        raise UserError("There is no such revision.", fields={"revision": f"{repository} has no such branch, tag or commit."})
    if answer.status_code in (401, 403, 404):
        more = "Look at the name, and at what the token may read." if signed_in else "For a private one connect Hugging Face in Settings."
        text = f"The hub has no dataset {repository}, or it is private. {more}"
        raise UserError(text, fields={"repository": text})
    raise UserError(f"The hub at {hub_url()} does not answer as it should ({answer.status_code}). Try again later.")


def described(sibling: Any) -> tuple[str, dict[str, Any]]:
    """(name, facts) of a file that holds rows and nothing else; ("", {}) of any other."""
    name = sibling.get("rfilename") if isinstance(sibling, dict) else None
    size = sibling.get("size") if isinstance(sibling, dict) else None
    if not isinstance(name, str) or not isinstance(size, int) or not SAFE.search(name) or NO_ROWS.search(name):
        return "", {}
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable() or len(name) > 300:
        return "", {}
    lfs = sibling.get("lfs")
    sha256 = str(lfs.get("sha256", "")) if isinstance(lfs, dict) else ""
    return name, {"size": size, "sha256": sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else ""}


def offered(files: dict[str, dict[str, Any]]) -> list[Offer]:
    """What can be chosen: parts of one split as one, every other file by itself."""
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        joins = JOINS.get(kind_of(name))
        groups.setdefault(SHARD.sub("", name) if joins else name, []).append(name)
    offers = [
        Offer(name, tuple(names), sum(files[each]["size"] for each in names), join_of(names[0]) if len(names) > 1 else "")
        for name, names in groups.items()
    ]
    return offers[:MOST_FILES]


def kind_of(name: str) -> str:
    found = SAFE.search(name)
    return found[1].lower() if found else ""


def join_of(name: str) -> str:
    """Packed lines are put behind each other as they are: what unpacks one unpacks several."""
    packed = name.lower().endswith((".gz", ".zst"))
    return "bytes" if packed else JOINS[kind_of(name)]


def fetch_from_hub(member: Member, *, project: Project, snapshot: Snapshot, name: str, connection: Connection | None = None) -> Upload:
    """Has one of the offers fetched: the upload that it will be."""
    offer = next((each for each in snapshot.offers if each.name == name), None)
    if offer is None:
        raise UserError("Choose a file.", fields={"file": "Choose a file of the list."})
    if len(offer.files) > MOST_SHARDS:
        raise UserError("This split has too many parts.", fields={"file": f"At most {MOST_SHARDS} parts are fetched together."})
    origin = {
        "kind": "hub",
        "repository": snapshot.repository,
        "revision": snapshot.revision,
        "commit": snapshot.commit,
        "license": snapshot.license,
        "files": list(offer.files),
        "sizes": [snapshot.files[each]["size"] for each in offer.files],
        "sha256": [snapshot.files[each]["sha256"] for each in offer.files],
        "join": offer.join,
    }
    if connection:
        origin["connection"] = str(connection.pk)
    return begin(member, project=project, filename=PurePosixPath(name).name, length=offer.size, origin=origin)


# ── A store ──


def fetch_object(member: Member, *, project: Project, connection: Connection, key: str) -> Upload:
    """Has an object of a store fetched, after it was asked how large it is."""
    key = key_of(connection, key)
    with outgoing.client(private=settings.PRIVATE_HOSTS, timeout=PATIENCE) as client:
        try:
            answer = client.head(signed(connection, "HEAD", key))
        except httpx.HTTPError as error:
            raise UserError(f"{connection.name} does not answer ({type(error).__name__}). Look at its address.") from error
    if answer.status_code in (400, 401, 403):
        raise UserError(f"{connection.name} refuses the key ({answer.status_code}), or there is no such object. Look at both.")
    if answer.status_code != 200:
        raise UserError("There is no such object.", fields={"key": f"{connection.name} has no {key[:100]} ({answer.status_code})."})
    length = answer.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise UserError(f"{connection.name} does not say how large the object is.")
    origin = {
        "kind": "object",
        "connection": str(connection.pk),
        "name": connection.name,
        "bucket": connection.settings["bucket"],
        "key": key,
    }
    if etag := answer.headers.get("ETag"):
        origin["etag"] = etag[:200]
    return begin(member, project=project, filename=PurePosixPath(key).name, length=int(length), origin=origin)


def key_of(connection: Connection, typed: str) -> str:
    """The object's key in the bucket, from itself or from its s3:// or gs:// address."""
    bucket = connection.settings["bucket"]
    key = typed.strip()
    for scheme in ("s3://", "gs://"):
        if key.startswith(scheme):
            named, _, key = key.removeprefix(scheme).partition("/")
            if named != bucket:
                raise UserError("Another bucket.", fields={"key": f"This connection is of the bucket {bucket}, not of {named[:60]}."})
    key = key.lstrip("/")
    if not key or key.endswith("/") or not key.isprintable() or len(key) > 1000 or ".." in key.split("/") or "//" in key:
        raise UserError("The key is off.", fields={"key": "Write the object's name as it stands in the bucket, with its folders."})
    if not SAFE.search(key):
        raise UserError("This is no file of rows.", fields={"key": "JSONL, JSON, CSV, Parquet, Arrow, Excel and text are read."})
    return key


def signed(connection: Connection, method: str, key: str) -> str:
    """An address that opens this one object for a while. Nothing is asked for it; the secret does not leave the server."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        store = opened_store(connection)
        url: str = obstore.sign(store, method, key, SIGNED)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise UserError(f"{connection.name} cannot be used: {str(error).splitlines()[0][:200]}") from error
    return url


def opened_store(connection: Connection) -> Any:
    """S3, or what speaks like it; Google's with a service account, or with the keys that its S3 interface takes."""
    from obstore.store import GCSStore, S3Store

    told, secret = connection.settings, opened(connection.secret)
    if connection.kind == Connection.Kind.GCS and secret.lstrip().startswith("{"):
        return GCSStore(told["bucket"], service_account_key=json.dumps(json.loads(secret)))
    if not told.get("key_id") or not secret:
        raise ValueError("it has no key")  # without one the library would ask the machine for its own
    endpoint = GOOGLE if connection.kind == Connection.Kind.GCS else told.get("url", "")
    config: S3Config = {
        "access_key_id": told["key_id"],
        "secret_access_key": secret,
        "region": told.get("region") or ("auto" if connection.kind == Connection.Kind.GCS else "us-east-1"),
        "virtual_hosted_style_request": not endpoint,
    }
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(told["bucket"], config=config, client_options={"allow_http": True})


# ── Whether it works ──


def attempt(connection: Connection) -> str:
    """Asks a hub or a store who is there; what it said, in a sentence. Raises UserError where the key is not taken."""
    if connection.kind == Connection.Kind.HUB:
        url, private = f"{hub_url()}/api/whoami-v2", allowed_hosts(hub_url())
        headers = {"Authorization": f"Bearer {opened(connection.secret)}"}
    else:  # an object that is not there: a store says so to whom it knows
        url, private, headers = signed(connection, "GET", "adapter-studio/is-it-there.jsonl"), settings.PRIVATE_HOSTS, {}
    try:
        with outgoing.client(private=private, timeout=PATIENCE) as client, client.stream("GET", url, headers=headers) as answer:
            said = next(answer.iter_text(8192), "")
    except httpx.HTTPError as error:
        raise UserError(f"It does not answer ({type(error).__name__}). Look at its address.") from error
    if connection.kind != Connection.Kind.HUB:
        return what_a_store_said(answer.status_code, said)
    if answer.status_code != 200:
        raise UserError(f"It refuses the token ({answer.status_code}).")
    return "It takes the token."


def what_a_store_said(status: int, said: str) -> str:
    found = re.search(r"<Code>(\w{1,60})</Code>", said)
    code = found[1] if found else ""
    if code == "NoSuchBucket":
        raise UserError("It answers, but has no such bucket.")
    if status in (200, 404):
        return "It answers, and opens the bucket."
    if code == "AccessDenied":
        return "It knows the key. Whether a file may be read shows when one is fetched."
    raise UserError(f"It refuses the key ({code or status}).")


# ── Both ──


def begin(member: Member, *, project: Project, filename: str, length: int, origin: dict[str, Any]) -> Upload:
    """The upload, and the order that fetches it."""
    with transaction.atomic():
        upload = uploading.begin(member, project=project, filename=filename, length=length, origin=origin)
        upload.order = place(member, kind="fetch", client=project.client)
        upload.save(update_fields=["order"])
    return upload


def payload(upload: Upload) -> FetchPayload:
    """What the worker is told: addresses of this one file, and no secret."""
    origin = upload.origin
    name, target = upload.filename, str(upload.path)
    if origin["kind"] == "hub":
        place_of = f"{hub_url()}/datasets/{origin['repository']}/resolve/{origin['commit']}"
        told = zip(origin["files"], origin["sizes"], origin["sha256"], strict=True)
        files = [Remote(url=f"{place_of}/{quote(name)}", size=size, sha256=sha256, signs_in=True) for name, size, sha256 in told]
        hub = f"The hub at {hub_url()}"
        return FetchPayload(name=name, target=target, files=files, join=origin["join"], place=hub, private=allowed_hosts(hub_url()))
    connection = connection_of(upload)
    if connection is None:
        raise UserError("The connection was removed. Fetch the file again by another one.")
    headers = {"If-Match": origin["etag"]} if origin.get("etag") else {}
    remote = Remote(url=signed(connection, "GET", origin["key"]), size=upload.length, headers=headers)
    return FetchPayload(name=name, target=target, files=[remote], place=connection.name, private=settings.PRIVATE_HOSTS)


def connection_of(upload: Upload) -> Connection | None:
    named = upload.origin.get("connection")
    workspace = upload.project.client.workspace_id
    found: Connection | None = Connection.objects.filter(workspace=workspace, pk=named).first() if named else None
    return found


def arrived(upload: Upload, result: dict[str, Any]) -> None:
    """The worker has fetched it."""
    upload.sha256, upload.length = result["sha256"], int(result["bytes"])
    upload.save(update_fields=["sha256", "length", "touched_at"])
