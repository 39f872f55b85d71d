"""What a person is offered to build, and what is refused before anything runs."""

import pytest

from studio.artifacts import quantizations
from studio.artifacts.models import Build
from studio.artifacts.services import in_house_project, request_builds
from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.orders.models import Order
from studio.training import ModelFacts
from studio.workspaces.services import create_client, create_project
from tests.fixtures import MODEL_FACTS, make_artifact, make_build, make_member, make_order

GGUF, ADAPTER, MERGED = Build.Kind.GGUF, Build.Kind.GGUF_ADAPTER, Build.Kind.MERGED


def ask(world, **asked):
    asked = {"source": world.artifact, "quantizations": ["q4_k_m"]} | asked
    return request_builds(world.owner, **asked)


def refusal(world, **asked):
    with pytest.raises(UserError) as caught:
        ask(world, **asked)
    assert not Build.objects.exclude(pk=world.build.pk).exists()
    return caught.value


def test_several_types_are_one_order_in_the_order_that_they_were_asked_for(acme):
    builds = ask(acme, quantizations=["q4_k_m", "f16", "q4_k_m"])
    assert [build.quantization for build in builds] == ["q4_k_m", "f16"]
    assert len({build.order_id for build in builds}) == 1
    assert builds[0].order.status == Order.Status.QUEUED
    assert AuditRecord.objects.filter(verb="build.create").count() == 2


def test_what_is_there_or_on_its_way_is_not_built_twice(acme):
    first = ask(acme, quantizations=["q4_k_m"])[0]
    builds = ask(acme, quantizations=["q8_0", "q4_k_m", "q6_k"])
    assert [build.pk for build in builds[:2]] == [acme.build.pk, first.pk]
    assert builds[2].order_id not in (first.order_id, acme.build.order_id)
    assert ask(acme, quantizations=["q8_0", "q4_k_m", "q6_k"]) == builds


def test_with_importance_is_another_file_but_not_for_types_that_do_not_use_it(acme):
    plain = ask(acme)[0]
    careful, exact = ask(acme, quantizations=["q4_k_m", "q8_0"], importance=True)
    assert (careful.importance, careful.pk != plain.pk) == (True, True)
    assert exact.pk == acme.build.pk


def test_importance_needs_a_type_that_uses_it_and_rows_to_measure_it_on(acme):
    assert "changes none of these types" in refusal(acme, quantizations=["f16", "q8_0"], importance=True).fields["importance"]
    acme.artifact.dataset_version = None
    acme.artifact.save()
    assert "made from none" in refusal(acme, importance=True).fields["importance"]
    assert "made from none" in refusal(acme, source=None, base_model=acme.base, importance=True).fields["importance"]


def test_a_base_model_is_built_as_it_is_into_the_in_house_project_or_another(acme):
    build = ask(acme, source=None, base_model=acme.base)[0]
    assert (build.source, build.base_model, build.project) == (None, acme.base, acme.project)
    assert str(build) == "Tiny q4_k_m"
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    assert ask(acme, source=None, base_model=acme.base, project=other)[0].project == other


def test_a_member_of_one_client_builds_a_base_model_for_that_client(acme):
    client = create_client(acme.owner, name="Globex")
    member = make_member(acme.workspace, role="member", email="max@example.com", clients=[client])
    with pytest.raises(UserError, match="no project"):
        in_house_project(member)
    theirs = create_project(acme.owner, client=client, name="Theirs")
    assert in_house_project(member) == theirs


def test_a_family_that_cannot_be_built_is_refused_with_the_list(acme):
    BaseModel.objects.update(facts=MODEL_FACTS | {"architecture": "MambaForCausalLM"})
    acme.artifact.refresh_from_db()
    problem = refusal(acme)
    assert problem.code == "unsupported_architecture"
    assert "MambaForCausalLM" in problem.message
    assert "Qwen3; Gemma 2" in problem.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"use_dora": true}', "holds DoRA"),
        ('{"modules_to_save": ["lm_head"], "bias": "all"}', "layers that were trained in full, trained biases"),
        ('{"trainable_token_indices": [3]}', "trained tokens"),
    ],
)
def test_an_adapter_that_llamacpp_cannot_swap_is_built_as_one_file(acme, config, words):
    order = make_order(acme.owner, kind="train", client=acme.client)
    special = make_artifact(order, acme.project, {"adapter_config.json": config.encode()}, base_model=acme.base)
    assert words in refusal(acme, source=special, kind=ADAPTER, quantizations=["f16"]).fields["kind"]
    assert ask(acme, source=special)[0].kind == GGUF


@pytest.mark.parametrize("config", [b"{", b"[1]", b'"a"', b"[" * 100_000])
def test_a_config_that_cannot_be_read_is_left_to_the_worker(acme, config):
    order = make_order(acme.owner, kind="train", client=acme.client)
    odd = make_artifact(order, acme.project, {"adapter_config.json": config}, base_model=acme.base)
    assert ask(acme, source=odd, kind=ADAPTER, quantizations=["f16"])[0].kind == ADAPTER


def test_a_whole_model_has_nothing_to_merge_and_no_adapter(acme):
    assert "nothing to merge" in refusal(acme, source=None, base_model=acme.base, kind=MERGED, quantizations=["f16"]).fields["kind"]
    assert "from an adapter" in refusal(acme, source=None, base_model=acme.base, kind=ADAPTER, quantizations=["f16"]).fields["kind"]


@pytest.mark.parametrize(("kind", "name"), [(GGUF, "q9"), (ADAPTER, "q8_0"), (MERGED, "q4_k_m"), (GGUF, "")])
def test_a_type_that_is_none_of_the_kind_is_refused(acme, kind, name):
    assert refusal(acme, kind=kind, quantizations=[name]).fields["quantization"].startswith("Choose from ")
    assert refusal(acme, kind=kind, quantizations=[]).fields["quantization"].startswith("Choose from ")


def test_nothing_is_built_from_a_file_to_take_home(acme):
    merged = make_build(acme.owner, acme.artifact, kind=MERGED, quantization="bf16").artifact
    assert (merged.kind, merged.is_chattable) == ("model", False)
    for built in (acme.build.artifact, merged):
        with pytest.raises(UserError, match="built from an adapter"):
            ask(acme, source=built)


def test_small_models_are_recommended_more_bits_than_large_ones():
    small, large = ModelFacts(**MODEL_FACTS), ModelFacts(**MODEL_FACTS | {"parameters": 3_000_000_000, "dtype": "bfloat16"})
    assert (quantizations.recommended("gguf", small), quantizations.recommended("gguf", large)) == ("q8_0", "q4_k_m")
    assert (quantizations.recommended("merged", small), quantizations.recommended("merged", large)) == ("f32", "bf16")
    assert quantizations.recommended("gguf_adapter", small) == "f16"


def test_rows_that_a_type_cannot_pack_get_another():
    assert quantizations.bits("Q4_K", 256) == 4.5
    assert quantizations.bits("Q4_K", 96) == 5.5
    assert quantizations.bits("Q6_K", 576) == 8.5
    assert quantizations.bits("Q8_0", 33) == 16
    assert quantizations.bits("F32", 33) == 32


def test_fused_layers_are_counted_as_what_they_hold():
    for entry in quantizations.QUANTIZATIONS.values():
        assert entry.bits_of("qkv_proj") == entry.bits_of("v_proj")
        assert entry.bits_of("gate_up_proj") == entry.bits_of("up_proj")
