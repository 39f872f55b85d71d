"""One request to the endpoint, from the model that it names to its record: who answers, what it took, and how it ended."""

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError
from django.http import Http404
from django.utils import timezone

from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import keeping, limits, traffic
from studio.serving.choosing import choose
from studio.serving.models import Call, Deployment
from studio.serving.openai.answers import Usage
from studio.serving.openai.errors import Refused, not_found
from studio.serving.openai.lines import AT_ONCE
from studio.serving.reach import deployments_for, releases_for
from studio.serving.subjects import Subject, subject_of
from studio.workspaces.models import Client, Member

OF_A_DEPLOYMENT = (
    "release__artifact__base_model",
    "release__artifact__project__client",
    "canary__artifact__base_model",
    "canary__artifact__project__client",
)
OF_A_RELEASE = ("artifact__base_model", "artifact__project__client")


@dataclass
class Under:
    """A request under way."""

    member: Member
    client: Client
    route: str
    deployment: Deployment | None = None
    release: Release | None = None
    pk: uuid.UUID = field(default_factory=uuid.uuid4)
    at: datetime = field(default_factory=timezone.now)
    began: float = field(default_factory=time.monotonic)
    streamed: bool = False
    place: limits.Place | None = None
    usage: Usage = field(default_factory=Usage)
    first: float | None = None
    ended: bool = False

    def begins(self) -> None:
        """The first token is here."""
        if self.first is None:
            self.first = time.monotonic() - self.began

    def choose(self, user: str | None) -> Release:
        """The release that answers: of a deployment always the same one for the same user, or else for the same key."""
        if self.deployment is not None:
            assert self.member.key is not None
            try:
                self.release = choose(self.deployment, f"user {user}" if user else f"key {self.member.key.pk}")
            except UserError as problem:
                raise Refused(404, "model_not_found", problem.message, param="model") from problem
        assert self.release is not None
        return self.release

    def subject(self, model: str) -> Subject:
        """Raises Refused where the release's files cannot answer."""
        assert self.release is not None
        try:
            return subject_of(self.release)
        except Http404 as problem:
            raise not_found(model) from problem
        except UserError as problem:
            raise Refused(400, "unsupported", problem.message, param="model") from problem

    def admit(self, expected_tokens: int) -> None:
        try:
            self.place = limits.admit(self.member.key, expected_tokens=expected_tokens)
        except limits.Limited as problem:
            raise Refused(429, "rate_limit_exceeded", problem.message, headers=problem.headers) from problem

    @property
    def side_by_side(self) -> int:
        """How many of its answers are written at a time: a place under a key's limit of answers at once is for one."""
        return 1 if self.member.key is not None and self.member.key.at_once else AT_ONCE

    def end(self, status: int, error: str = "", *, said: tuple[list[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        """Records it, once; `said` is the conversation and the answer, which the project may keep."""
        if self.ended:
            return
        self.ended = True
        self.usage.settle()
        if self.place is not None:
            self.place.leave(self.usage.total)
        with suppress(IntegrityError):  # the client, or what answered, was erased meanwhile: then nothing of it is recorded
            traffic.record_call(self.call(status, error))
            if said is not None and self.release is not None:
                keeping.keep(
                    pk=self.pk,
                    deployment=self.deployment,
                    release=self.release,
                    key=self.member.key,
                    messages=said[0],
                    answer=said[1],
                    at=self.at,
                )

    def call(self, status: int, error: str) -> Call:
        return Call(
            id=self.pk,
            client=self.client,
            deployment=self.deployment,
            release=self.release,
            key=self.member.key,
            canary=self.deployment is not None and self.release is not None and self.release.pk == self.deployment.canary_id,
            route=self.route,
            streamed=self.streamed,
            at=self.at,
            status=status,
            error=error[:40],
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
            seconds=time.monotonic() - self.began,
            first=self.first,
        )


def find(member: Member, model: str) -> Deployment | Release:
    """What somebody may ask by this name. Raises Refused, the same for what is nowhere and what is out of reach."""
    if "\x00" in model:
        raise not_found(model)
    client, slash, slug = model.partition("/")
    if slash:
        deployment = deployments_for(member).select_related(*OF_A_DEPLOYMENT).filter(client__slug=client, slug=slug).first()
        if deployment is None:
            raise not_found(model)
        return deployment
    found = list(releases_for(member).select_related(*OF_A_RELEASE).filter(name=model)[:2])
    if not found:
        raise not_found(model)
    if len(found) > 1:  # client a-b with task c, and client a with task b-c
        raise Refused(404, "model_not_found", f"Several releases are called '{model}'. Ask a deployment instead.", param="model")
    return found[0]


def begin(member: Member, model: str, route: str) -> Under:
    found = find(member, model)
    if isinstance(found, Deployment):  # whoever asks wrongly is put down to what answers most
        return Under(member, found.client, route, deployment=found, release=found.release)
    return Under(member, found.artifact.project.client, route, release=found)
