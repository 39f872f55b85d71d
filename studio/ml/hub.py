"""Fetches a model from a Hugging Face hub: one revision, safetensors only, going on where it stopped. Nothing is opened here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from studio.errors import UserError
from studio.ml.modelfiles import enough_room, small_files, weights_among
from studio.storage import sha256_file
from studio.training import Job

TRIES = 3
WAIT = 2.0
"""Seconds before the second try; twice that before the third."""
BROKEN = (httpx.HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Snapshot:
    folder: Path
    names: list[str]
    revision: str
    """The commit that the asked revision stood for."""
    license: str


def fetch(repository: str, *, revision: str, endpoint: str, cache: Path, job: Job) -> Snapshot:
    """Downloads what makes a base model into `cache`; what is there already is not fetched again."""
    if constants.HF_HUB_OFFLINE:
        raise UserError("This worker works offline (HF_HUB_OFFLINE is set). Register the model from a folder instead.")
    job.phase("downloading", repository)
    hub = _Hub(repository, endpoint=endpoint or None, job=job)
    found = hub.look(revision)
    folder = cache / found.sha
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or [] if "/" not in file.rfilename}
    small = small_files(sizes)
    if not any(name.endswith(".safetensors") for name in sizes):
        weights_among(sizes, folder)  # says what there is instead, before anything is downloaded
    hub.get(small, folder=folder, revision=found.sha, sizes=sizes)
    weights = weights_among(sizes, folder)
    enough_room(sum(sizes[name] for name in weights), folder=folder)
    hub.get(weights, folder=folder, revision=found.sha, sizes=sizes)
    job.phase("checking", "Comparing with the hub's checksums")
    _compare(folder, {file.rfilename: file.lfs.sha256 for file in found.siblings or [] if file.lfs and file.rfilename in weights}, job=job)
    return Snapshot(folder=folder, names=[*small, *weights], revision=found.sha, license=_license(found))


class _Hub:
    """One repository of one hub. Every error of the network becomes a sentence."""

    def __init__(self, repository: str, *, endpoint: str | None, job: Job):
        self.repository, self.endpoint, self.job = repository, endpoint, job

    def look(self, revision: str) -> Any:
        """What the revision stands for, and its files with their sizes."""
        api = HfApi(endpoint=self.endpoint)
        return self._patiently(lambda: api.model_info(self.repository, revision=revision or None, files_metadata=True, timeout=30))

    def get(self, names: list[str], *, folder: Path, revision: str, sizes: dict[str, int]) -> None:
        total, before = sum(sizes[name] for name in names), 0
        for name in names:
            self.job.raise_if_stopped()
            meter = _meter(self.job, before=before, total=total)
            place: dict[str, Any] = {"revision": revision, "local_dir": folder, "endpoint": self.endpoint, "tqdm_class": meter}
            self._patiently(partial(hf_hub_download, self.repository, name, **place))
            before += sizes[name]
            self.job.progress(before, total, "bytes")

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        for tried in range(1, TRIES + 1):
            try:
                return ask()
            except GatedRepoError as error:
                raise UserError(
                    f"{self.repository} is gated. Accept its licence on the hub with your account, then set HF_TOKEN for the worker."
                ) from error
            except RevisionNotFoundError as error:
                raise UserError(f"{self.repository} has no such revision. Name a branch, a tag or a commit of it.") from error
            except RepositoryNotFoundError as error:
                raise UserError(
                    f"The hub has no {self.repository}, or it is private. Check the name; for a private one set HF_TOKEN for the worker."
                ) from error
            except EntryNotFoundError as error:
                # Also raised, as LocalEntryNotFoundError, where the hub could not be reached at all.
                if not isinstance(error, LocalEntryNotFoundError):
                    raise UserError(f"{self.repository} changed while it was downloaded. Try again.") from error
                self._give_up_or_wait(tried, error)
            except HfHubHTTPError as error:
                if error.response.status_code < 500 and error.response.status_code != 429:
                    status = error.response.status_code
                    raise UserError(f"The hub refused {self.repository} ({status}). Check the name and HF_TOKEN.") from error
                self._give_up_or_wait(tried, error)
            except BROKEN as error:
                self._give_up_or_wait(tried, error)
            except OSError as error:  # the library's word for a file that came out too short or too long
                if "Consistency check" not in str(error):
                    raise
                self._give_up_or_wait(tried, error)
        raise AssertionError("unreachable")

    def _give_up_or_wait(self, tried: int, error: Exception) -> None:
        if tried == TRIES:
            address = self.endpoint or constants.ENDPOINT
            raise UserError(
                f"The hub at {address} could not be reached, or the connection broke ({type(error).__name__}). "
                "Check the worker's network, then try again: what was downloaded is kept."
            ) from error
        self.job.note(f"The connection to the hub broke ({type(error).__name__}); trying again.", level="warning")
        until = time.monotonic() + WAIT * tried
        while time.monotonic() < until:
            self.job.raise_if_stopped()
            time.sleep(0.1)


def _meter(job: Job, *, before: int, total: int) -> type[tqdm]:
    """The library reports to a progress bar; this one reports to the job, and heeds a stop at every piece."""

    class Meter(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **options: Any):
            super().__init__(disable=True)  # type: ignore[no-untyped-call]
            self.done = before + initial

        def update(self, n: float | None = 1) -> bool | None:
            job.raise_if_stopped()
            self.done += int(n or 0)
            job.progress(self.done, total, "bytes")
            return None

    return Meter


def _compare(folder: Path, expected: dict[str, str], *, job: Job) -> None:
    for name, sha256 in expected.items():
        job.raise_if_stopped()
        if sha256_file(folder / name) != sha256:
            (folder / name).unlink()
            raise UserError(f"{name} is not what the hub says it is. It was thrown away; try again.")


def _license(found: Any) -> str:
    named = next((tag.removeprefix("license:") for tag in found.tags or [] if tag.startswith("license:")), "")
    return str(named)[:60]
