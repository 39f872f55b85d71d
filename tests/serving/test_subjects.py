"""What the engine is told of each kind of model; the files are not looked at here, so none need be there."""

import pytest
from django.http import Http404

from studio.artifacts.models import Artifact, Build
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving.subjects import subject_of
from tests.fixtures import World, make_release

FILE = {"model.q8_0.gguf": {"sha256": "ab" * 32, "size": 10}}
pytestmark = pytest.mark.django_db


def changed(artifact: Artifact, kind: Artifact.Kind, files: dict[str, dict[str, object]]) -> Artifact:
    artifact.kind, artifact.files = kind, files
    artifact.save()
    return artifact


def test_an_adapter_is_asked_on_its_base_within_its_workspace(acme: World):
    found = subject_of(acme.artifact)
    assert found == {
        "workspace": str(acme.workspace.pk),
        "base": str(acme.base.folder),
        "base_sha256": acme.base.sha256,
        "adapter": str(acme.artifact.folder),
        "adapter_sha256": acme.artifact.sha256,
    }
    release = make_release(acme.owner, acme.artifact, stage=Release.Stage.APPROVED)
    assert subject_of(release) == found


def test_a_base_and_a_full_model_are_asked_as_they_are(acme: World):
    base = subject_of(acme.base)
    assert base["base"] == str(acme.base.folder) and base["adapter"] == base["adapter_sha256"] == ""
    model = subject_of(changed(acme.artifact, Artifact.Kind.MODEL, {}))
    assert model["base"] == str(acme.artifact.folder) and model["base_sha256"] == acme.artifact.sha256 and not model["adapter"]


def test_a_built_file_is_asked_by_its_own_hash(acme: World):
    built = changed(acme.artifact, Artifact.Kind.GGUF, FILE | {"Modelfile": {"sha256": "cd" * 32, "size": 1}})
    found = subject_of(built)
    assert found["base"] == str(built.folder / "model.q8_0.gguf") and found["base_sha256"] == "ab" * 32
    adapter = subject_of(changed(acme.artifact, Artifact.Kind.GGUF_ADAPTER, FILE))
    assert adapter["base"] == str(acme.base.folder) and adapter["adapter"].endswith(".gguf") and adapter["adapter_sha256"] == "ab" * 32


def test_a_file_in_pieces_is_refused_with_what_to_do(acme: World):
    pieces = {f"model-{number}.gguf": {"sha256": "ab" * 32, "size": 1} for number in (1, 2)}
    with pytest.raises(UserError, match="Build it as one") as refused:
        subject_of(changed(acme.artifact, Artifact.Kind.GGUF, pieces))
    assert refused.value.code == "unsupported"


def test_what_is_not_there_yet_cannot_be_asked(acme: World):
    acme.base.facts = None
    with pytest.raises(UserError, match="not ready yet"):
        subject_of(acme.base)
    build = Build(project=acme.project, source=acme.artifact, quantization="q8_0")
    with pytest.raises(UserError, match="not built yet"):
        subject_of(build)


def test_a_rehearsal_answers_nothing(acme: World):
    with pytest.raises(Http404):
        subject_of(changed(acme.artifact, Artifact.Kind.REHEARSAL, {}))
