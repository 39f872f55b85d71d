"""Fetches a model from a Hugging Face hub: one revision, safetensors only, going on where it stopped. Nothing is opened here.

The library asks the hub what there is. The bytes are fetched here, because since huggingface_hub 1.3x it begins every file anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from studio.errors import UserError
from studio.ml.modelfiles import enough_room, small_files, weights_among
from studio.resuming import Rest, TooShort, size_of, wait
from studio.storage import sha256_file
from studio.training import Job

TRIES = 4
"""Failures in a row, with not one byte between them, before a download is given up."""
WAIT = 2.0
"""Seconds before the second try; as many more before each further one."""
BROKEN = (httpx.TransportError, HfHubHTTPError, TooShort)


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
    hub = _Hub(repository, endpoint=endpoint or constants.ENDPOINT, job=job)
    found = hub.look(revision)
    folder = cache / found.sha
    folder.mkdir(parents=True, exist_ok=True)
    files = {file.rfilename: file for file in found.siblings or [] if "/" not in file.rfilename}
    small = small_files(files)
    if not any(name.endswith(".safetensors") for name in files):
        weights_among(files, folder)  # says what there is instead, before anything is downloaded
    hub.get({name: files[name].size for name in small}, folder=folder, revision=found.sha)
    weights = weights_among(files, folder)
    enough_room(sum(files[name].size for name in weights), folder=folder)
    hub.get({name: files[name].size for name in weights}, folder=folder, revision=found.sha)
    job.phase("checking", "Comparing with the hub's checksums")
    _compare(folder, {name: files[name].lfs.sha256 for name in weights if files[name].lfs}, job=job)
    named = next((tag.removeprefix("license:") for tag in found.tags or [] if tag.startswith("license:")), "")
    return Snapshot(folder=folder, names=[*small, *weights], revision=found.sha, license=named[:60])


class _Hub:
    """One repository of one hub. What goes wrong on the way becomes a sentence, or is tried again."""

    def __init__(self, repository: str, *, endpoint: str, job: Job):
        self.repository, self.endpoint, self.job = repository, endpoint, job

    def look(self, revision: str) -> Any:
        """What the revision stands for, and its files with their sizes."""
        api = HfApi(endpoint=self.endpoint)
        return self._patiently(lambda: api.model_info(self.repository, revision=revision or None, files_metadata=True, timeout=30))

    def get(self, sizes: dict[str, int], *, folder: Path, revision: str) -> None:
        """Fetches the files named in `sizes` (bytes), each under its own name once it is whole."""
        total, before = sum(sizes.values()), 0
        for name, size in sizes.items():
            target, part = folder / name, folder / f"{name}.part"
            url = hf_hub_url(self.repository, name, revision=revision, endpoint=self.endpoint)
            if not target.exists():
                fetch_rest = Rest(partial(_open, url), part, size=size, report=_reporter(self.job, before=before, total=total))
                self._patiently(fetch_rest, got=partial(size_of, part))
                part.rename(target)
            before += size
            self.job.progress(before, total, "bytes")

    def _patiently(self, ask: Callable[[], Any], *, got: Callable[[], int] = lambda: 0) -> Any:
        """Asks again after a failure, until there were TRIES in a row without `got()` growing."""
        failures, had = 0, 0
        while True:
            try:
                with self._in_words():
                    return ask()
            except BROKEN as error:
                failures = failures + 1 if got() <= had else 1
                had = got()
                if failures == TRIES:
                    raise UserError(
                        f"The hub at {self.endpoint} could not be reached, or the connection broke ({type(error).__name__}). "
                        "Check the worker's network, then try again: what was downloaded is kept."
                    ) from error
                wait(self.job, WAIT * failures, broke=f"The connection to the hub broke ({type(error).__name__})")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
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
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500 or status in (408, 429):
                raise
            raise UserError(f"The hub refused {self.repository} ({status}). Check the name and HF_TOKEN.") from error


@contextmanager
def _open(url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    # Signs in at the hub; httpx leaves the sign-in out where the hub sends it on to a storage server.
    headers = {**build_hf_headers(), **headers}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        yield response


def _reporter(job: Job, *, before: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        job.raise_if_stopped()
        job.progress(before + done, total, "bytes")

    return report


def _compare(folder: Path, expected: dict[str, str], *, job: Job) -> None:
    for name, sha256 in expected.items():
        job.raise_if_stopped()
        if sha256_file(folder / name) != sha256:
            (folder / name).unlink()
            raise UserError(f"{name} is not what the hub says it is. It was thrown away; try again.")
