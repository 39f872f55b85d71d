"""The pages of builds: the form, one build while it works and when it is done, the ladder of a source, and who may do what there."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client as Browser
from django.utils import timezone

from studio.artifacts.models import Artifact, Build
from studio.artifacts.pages import seconds_left
from studio.orders.models import Event, Order
from studio.workspaces.models import Member, Project
from tests.fixtures import MODEL_FACTS, World, make_artifact, make_build, make_member, make_order

FIGURES: dict[str, Any] = {
    "loads": True,
    "tokenizer_texts": 200,
    "tokenizer_equal": 200,
    "template": True,
    "stops": True,
    "tokens": 1871,
    "mean_kl": 0.011,
    "max_kl": 0.34,
    "perplexity": 8.44,
    "perplexity_reference": 8.41,
    "top1": 0.951,
    "greedy_prompts": 10,
    "greedy_equal": 7,
    "greedy_undecided": 1,
    "tokens_per_second": 108.2,
    "prompt_tokens_per_second": 292.0,
    "memory": 240_000_000,
    "load_seconds": 0.41,
    "sandbox": ["limits", "no_network", "only_its_files"],
    "passed": True,
    "reasons": [],
}


@pytest.fixture
def ana(acme: World) -> Browser:
    return signed_in(acme.owner)


def signed_in(member: Member) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def words(response: Any) -> str:
    """What a page says, without its markup."""
    text = re.sub(r"<(script|style|template)\b.*?</\1>|<[^>]+>", " ", response.content.decode(), flags=re.DOTALL)
    return " ".join(text.replace("&#x27;", "'").replace("&lt;", "<").replace("&amp;", "&").split())


def proved(
    world: World, quantization: str, *, size: int, source: Artifact | None = None, importance: bool = False, **figures: Any
) -> Build:
    """A build that passed unless `figures` say otherwise, with a file of `size` bytes."""
    build = make_build(world.owner, source or world.artifact, quantization=quantization, content=b"GGUF" + quantization.encode())
    build.verification, build.importance = FIGURES | figures, importance
    build.save()
    artifact = build.artifact
    assert artifact is not None
    for name, facts in artifact.files.items():
        if name.endswith(".gguf"):
            facts["size"] = size
    artifact.save()
    return build


def coming(world: World, quantization: str, *, status: str = Order.Status.RUNNING, order: Order | None = None, **columns: Any) -> Build:
    order = order or make_order(world.owner, kind="build", client=world.client, status=status)
    return Build.objects.create(project=world.project, source=world.artifact, quantization=quantization, order=order, **columns)


def field(response: Any, name: str, value: str) -> str:
    """The input's tag."""
    found = re.search(rf'<input [^>]*name="{name}"[^>]*value="{value}"[^>]*>', response.content.decode())
    assert found, f"{name}={value} is not on the page"
    return found[0]


# The form


def test_the_recommended_type_is_one_click_away_and_several_can_be_ticked(acme: World, ana: Browser):
    acme.build.delete()
    page = ana.get(f"/artifacts/{acme.artifact.pk}/")
    assert "checked" in field(page, "quantization", "q8_0")
    assert 'type="checkbox"' in field(page, "quantization", "q4_k_m") and "checked" not in field(page, "quantization", "q4_k_m")
    said = words(page)
    assert "One file that runs" in said and "An adapter for a base that stays" in said and "Weights for further work" in said
    assert re.search(r"about \d+ [kM]B", said)
    assert re.search(r"<details class=\"fold\"><summary>Less common types", page.content.decode())
    assert "reads some of your 10 training rows first" in said


def test_one_type_leads_to_its_page_and_several_to_the_ladder(acme: World, ana: Browser):
    address = f"/builds/of/{acme.artifact.pk}/"
    answer = ana.post(address, {"kind": "gguf", "quantization": ["q6_k"]})
    assert answer["Location"] == f"/builds/{Build.objects.get(quantization='q6_k').pk}/"
    answer = ana.post(address, {"kind": "gguf", "quantization": ["q5_k_m", "q4_k_m"], "importance": "on"})
    assert answer["Location"] == f"{address}ladder/"
    made = Build.objects.filter(quantization__in=["q5_k_m", "q4_k_m"])
    assert [build.importance for build in made] == [True, True]
    assert len({build.order_id for build in made}) == 1


def test_what_is_there_says_so_and_is_not_ticked_again(acme: World, ana: Browser):
    page = ana.get(f"/artifacts/{acme.artifact.pk}/")
    assert "checked" not in field(page, "quantization", "q8_0")
    assert "there already" in words(page)
    coming(acme, "q4_k_m")
    assert "on its way" in words(ana.get(f"/artifacts/{acme.artifact.pk}/"))


def test_an_error_stands_beside_its_field_and_what_was_ticked_stays(acme: World, ana: Browser):
    answer = ana.post(f"/builds/of/{acme.artifact.pk}/", {"kind": "gguf", "quantization": ["q8_0"], "importance": "on"})
    assert answer.status_code == 422
    beside = answer.content.decode().split('data-field="importance"')[1].split("</fieldset>")[0]
    assert "changes none of these types" in beside
    assert "checked" in field(answer, "quantization", "q8_0")
    nothing = ana.post(f"/builds/of/{acme.artifact.pk}/", {"kind": "gguf"})
    assert nothing.status_code == 422
    assert "Choose from f32" in nothing.content.decode().split('data-field="quantization"')[1].split("</fieldset>")[0]


@pytest.mark.parametrize(("kind", "name"), [("merged", "merged_precision"), ("gguf_adapter", "adapter_precision")])
def test_each_kind_has_its_own_types(acme: World, ana: Browser, kind: str, name: str):
    answer = ana.post(f"/builds/of/{acme.artifact.pk}/", {"kind": kind, "quantization": "q8_0", name: "f32", "importance": "on"})
    made = Build.objects.get(kind=kind)
    assert (made.quantization, made.importance) == ("f32", False)
    assert answer["Location"] == f"/builds/{made.pk}/"


def test_an_adapter_that_cannot_be_swapped_says_why(acme: World, ana: Browser):
    order = make_order(acme.owner, kind="train", client=acme.client)
    files = {"adapter_config.json": b'{"use_dora": true}'}
    dora = make_artifact(order, acme.project, files, base_model=acme.base, dataset_version=acme.version)
    page = ana.get(f"/artifacts/{dora.pk}/")
    assert "disabled" in field(page, "kind", "gguf_adapter")
    assert "it holds DoRA, which llama.cpp cannot add to a running model" in words(page)
    assert "disabled" not in field(page, "kind", "merged")


def test_without_training_rows_careful_rounding_cannot_be_chosen(acme: World, ana: Browser):
    acme.artifact.dataset_version = None
    acme.artifact.save()
    page = ana.get(f"/artifacts/{acme.artifact.pk}/")
    assert re.search(r'<input type="checkbox" name="importance"[^>]* disabled', page.content.decode())
    assert "made from none that are kept here" in words(page)


def test_a_family_that_cannot_be_built_gets_the_list_instead_of_a_form(acme: World, ana: Browser):
    acme.base.facts = MODEL_FACTS | {"architecture": "MambaForCausalLM"}
    acme.base.save()
    page = ana.get(f"/artifacts/{acme.artifact.pk}/")
    assert b'name="quantization"' not in page.content
    assert "A GGUF cannot be built from MambaForCausalLM yet. Supported are: Llama" in words(page)


def test_a_viewer_sees_the_files_and_no_form(acme: World):
    bob = signed_in(make_member(acme.workspace, role="viewer", email="bob@example.com"))
    for address in (f"/artifacts/{acme.artifact.pk}/", f"/builds/of/{acme.artifact.pk}/ladder/"):
        page = bob.get(address)
        assert page.status_code == 200 and b'name="quantization"' not in page.content
    failed = coming(acme, "q6_k", status=Order.Status.FAILED)
    page = bob.get(f"/builds/{failed.pk}/")
    assert "Build again" not in words(page) and "Delete" not in words(page)
    for address in (f"of/{acme.artifact.pk}", f"{failed.pk}/retry", f"{failed.pk}/delete", f"{failed.pk}/stop", f"base/{acme.base.pk}"):
        assert bob.post(f"/builds/{address}/", {"quantization": "q8_0"}).status_code in (403, 404), address


# A base model as it is


def test_a_base_model_is_built_as_it_is_for_a_project(acme: World, ana: Browser):
    assert f'href="/builds/base/{acme.base.pk}/"' in ana.get(f"/base-models/{acme.base.pk}/").content.decode()
    page = ana.get(f"/builds/base/{acme.base.pk}/")
    assert f'<option value="{acme.project.pk}"' in page.content.decode()
    assert b'name="kind" value="merged"' not in page.content
    other = Project.objects.create(client=acme.client, name="Other", slug="other")
    answer = ana.post(f"/builds/base/{acme.base.pk}/", {"kind": "gguf", "quantization": ["q8_0", "f16"], "project": str(other.pk)})
    assert answer["Location"] == f"/builds/base/{acme.base.pk}/ladder/"
    made = Build.objects.filter(base_model=acme.base, source=None)
    assert {(build.quantization, build.project) for build in made} == {("q8_0", other), ("f16", other)}
    page = ana.get(answer["Location"])
    assert "On their way" in words(page) and "The same base model in files of several sizes" in words(page)
    assert "the base model as it is" in words(ana.get(f"/builds/{made[0].pk}/"))


def test_a_project_of_others_is_not_found(acme: World, rival: World, ana: Browser):
    sent = {"kind": "gguf", "quantization": "q8_0", "project": str(rival.project.pk)}
    assert ana.post(f"/builds/base/{acme.base.pk}/", sent).status_code == 404
    assert ana.get(f"/builds/base/{rival.base.pk}/").status_code == 404


# One build


def test_a_build_at_work_says_what_it_does_how_far_it_is_and_how_long_it_takes(acme: World, ana: Browser):
    build = coming(acme, "q4_k_m")
    coming(acme, "q6_k", order=build.order)
    order = build.order
    order.phase, order.phase_text = "converting", "Writing q4_k_m and q6_k"
    order.done, order.total, order.unit = 50e6, 200e6, "bytes"
    order.save()
    begun = timezone.now() - timedelta(seconds=100)
    for seq, (type_, body) in enumerate([("phase", {"name": "converting"}), ("progress", {"done": 0, "total": 200e6})], 1):
        Event.objects.create(order=order, seq=seq, attempt=1, at=begun, type=type_, body=body)
    said = words(ana.get(f"/builds/{build.pk}/"))
    assert "Writing q4_k_m and q6_k" in said and "50 MB of 200 MB" in said and "5 min left" in said
    assert "In one pass over the weights: q4_k_m q6_k" in said
    assert "Cancel" in said and "Build again" not in said
    ana.post(f"/builds/{build.pk}/stop/")
    order.refresh_from_db()
    assert order.stop_requested_at


def test_the_time_left_is_the_pace_of_this_phase_since_it_was_gone_on_with(acme: World):
    order = coming(acme, "q4_k_m").order
    order.done, order.total, order.unit = 150.0, 200.0, "bytes"
    assert seconds_left(order) is None  # nothing was reported yet
    now = timezone.now()
    Event.objects.create(order=order, seq=1, attempt=1, at=now - timedelta(seconds=900), type="progress", body={"done": 10, "total": 20})
    Event.objects.create(order=order, seq=2, attempt=1, at=now - timedelta(seconds=20), type="phase", body={"name": "converting"})
    Event.objects.create(order=order, seq=3, attempt=1, at=now - timedelta(seconds=10), type="progress", body={"done": 100, "total": 200})
    assert seconds_left(order) == pytest.approx(10, rel=0.1)


def test_what_waits_for_memory_says_why(acme: World, ana: Browser):
    build = coming(acme, "q4_k_m")
    build.order.phase_text = "Waits for memory: another build holds 3.2 GB of 4.0 GB"
    build.order.save()
    assert "another build holds 3.2 GB of 4.0 GB" in words(ana.get(f"/builds/{build.pk}/"))


def test_a_build_that_passed_shows_its_proof_its_hash_and_how_to_run_it(acme: World, ana: Browser):
    plain = {"mean_kl": 0.16, "perplexity": 9.31, "size": 105_000_000}
    build = proved(acme, "q4_k_m", size=105_000_000, mean_kl=0.112, importance=True, plain=plain)
    page = ana.get(f"/builds/{build.pk}/")
    said = words(page)
    for sentence in (
        "Download 105 MB",
        "It runs, and it answers as it should.",
        "0.112 other words at times",
        "8.44 instead of 8.41",
        "200 of 200 test texts are split alike.",
        "Renders the same prompt.",
        "Answers end by themselves.",
        "Reads 292 and writes 108 tokens a second",
        "without a network, with nothing but this file to open",
        "What careful rounding bought",
        "lms import in-house-first-project-try-q4_k_m.gguf",
        "-f Modelfile",
    ):
        assert sentence in said, sentence
    assert build.artifact is not None
    file = build.artifact.files["in-house-first-project-try-q4_k_m.gguf"]
    assert file["sha256"] in said
    assert f'href="/artifacts/{build.artifact.pk}/bundle/"' in page.content.decode()
    assert f'href="/builds/of/{acme.artifact.pk}/ladder/"' in page.content.decode()


def test_figures_that_were_never_taken_leave_no_gap(acme: World, ana: Browser):
    untaken = dict.fromkeys(FIGURES) | {"loads": False, "template": False, "stops": False, "sandbox": [], "passed": False}
    build = proved(acme, "q2_k", size=88_000_000, **untaken | {"reasons": ["llama.cpp could not load the file."]})
    said = words(ana.get(f"/builds/{build.pk}/"))
    assert "llama.cpp could not load the file." in said
    assert "None" not in said and "Perplexity" not in said and "Chat template" not in said


def test_a_build_that_did_not_pass_says_why_first_and_is_not_to_be_had(acme: World, ana: Browser, django_capture_on_commit_callbacks: Any):
    build = proved(acme, "q2_k", size=88_000_000, passed=False, reasons=["The answers differ by 1.9 nats per token; q2_k may by 1.5."])
    page = ana.get(f"/builds/{build.pk}/")
    said = words(page)
    assert said.index("It did not pass") < said.index("The answers differ by 1.9 nats") < said.index("Same words")
    assert "Kept on the server until it is deleted." in said
    assert build.artifact is not None
    assert f"/artifacts/{build.artifact.pk}/download/" not in page.content.decode()
    assert ana.get(f"/artifacts/{build.artifact.pk}/bundle/").status_code != 200
    again = ana.post(f"/builds/{build.pk}/retry/")
    assert again["Location"] == f"/builds/{Build.objects.filter(quantization='q2_k').exclude(pk=build.pk).get().pk}/"
    with django_capture_on_commit_callbacks(execute=True):
        assert ana.post(f"/builds/{build.pk}/delete/")["Location"] == f"/builds/of/{acme.artifact.pk}/ladder/"
    assert not Build.objects.filter(pk=build.pk).exists() and not build.artifact.folder.exists()


@pytest.mark.parametrize(("status", "sentence"), [("failed", "The build failed. No room."), ("stopped", "The build was cancelled.")])
def test_what_ended_without_a_file_can_be_built_again_or_deleted(acme: World, ana: Browser, status: str, sentence: str):
    build = coming(acme, "q6_k", status=status)
    build.order.error = "No room."
    build.order.save()
    said = words(ana.get(f"/builds/{build.pk}/"))
    assert sentence in said and "Build again" in said and "Delete" in said
    assert "Asked for together" not in said
    coming(acme, "q4_k_m", order=build.order)
    assert "Asked for together, and built again together: q6_k q4_k_m" in words(ana.get(f"/builds/{build.pk}/"))


def test_without_a_project_nothing_is_built_and_it_says_so(acme: World, ana: Browser):
    acme.client.archived_at = timezone.now()
    acme.client.save()
    answer = ana.post(f"/builds/base/{acme.base.pk}/", {"kind": "gguf", "quantization": "q8_0"})
    assert answer.status_code == 422 and "There is no project to put it in." in words(answer)


def test_a_gguf_adapter_and_merged_weights_say_how_they_are_run(acme: World, ana: Browser):
    adapter = proved(acme, "f16", size=9_800_000)
    Build.objects.filter(pk=adapter.pk).update(kind="gguf_adapter")
    Artifact.objects.filter(pk=adapter.artifact_id).update(kind="gguf_adapter")
    page = ana.get(f"/builds/{adapter.pk}/")
    assert "--lora in-house-first-project-try-f16.gguf" in words(page)
    assert f'href="/builds/base/{acme.base.pk}/"' in page.content.decode() and "LM Studio" not in words(page)

    merged = proved(acme, "bf16", size=269_000_000)
    Build.objects.filter(pk=merged.pk).update(kind="merged")
    files = {name: {"sha256": "a" * 64, "size": 9} for name in ("config.json", "model.safetensors")}
    Artifact.objects.filter(pk=merged.artifact_id).update(kind="model", files=files, lineage={"quantization": "bf16"})
    page = ana.get(f"/builds/{merged.pk}/")
    assert "vllm serve ." in words(page) and f"/artifacts/{merged.artifact_id}/bundle/" in page.content.decode()
    kept = ana.get(f"/artifacts/{merged.artifact_id}/")
    assert "Merged weights in bf16" in words(kept) and b'name="quantization"' not in kept.content


# The ladder


@pytest.fixture
def ladder(acme: World) -> World:
    acme.build.delete()
    proved(acme, "f16", size=271_000_000, mean_kl=1.1e-5, perplexity=8.41, top1=0.995)
    proved(acme, "q8_0", size=145_000_000)
    proved(acme, "q4_k_m", size=105_000_000, mean_kl=0.16, perplexity=9.31, top1=0.836)
    careful = {"plain": {"mean_kl": 0.16, "perplexity": 9.31, "size": 105_000_000}}
    proved(acme, "q4_k_m", size=105_000_000, mean_kl=0.112, perplexity=9.02, top1=0.851, importance=True, **careful)
    proved(acme, "q2_k", size=88_000_000, mean_kl=1.9, passed=False, reasons=["Too far from the model."])
    return acme


def rows_of(page: Any) -> list[str]:
    table = page.content.decode().split('aria-label="Files by size"')[1].split("</table>")[0].split("<tbody>")[1]
    return [" ".join(re.sub(r"<[^>]+>", " ", row).replace("&lt;", "<").split()) for row in table.split("<tr")[1:]]


def test_the_ladder_recommends_one_with_its_reason_and_compares_all_that_passed(ladder: World, ana: Browser):
    page = ana.get(f"/builds/of/{ladder.artifact.pk}/ladder/")
    said = words(page)
    assert "Take q8_0: 145 MB The smallest file whose answers are hard to tell" in said
    rows = rows_of(page)
    assert [re.search(r"[a-z]+[0-9]\w*", row)[0] for row in rows] == ["f16", "q8_0", "q4_k_m", "q4_k_m"]  # type: ignore[index]
    assert "Difference < 0.0001 as good as none" in rows[0] and "Same word 100 %" in rows[0]
    assert "Recommended" in rows[1] and "Tokens/s here 108" in rows[1] and "laptop with 8 GB" in rows[1]
    assert "with care, plainly 0.160" in rows[3] and "instead of 8.41" in rows[3]
    assert "Not on the ladder" in said and "Too far from the model." in said


def test_the_chart_has_the_figures_of_the_table(ladder: World, ana: Browser):
    page = ana.get(f"/builds/of/{ladder.artifact.pk}/ladder/").content.decode()
    label = re.search(r'class="ladder-plot" role="img" aria-label="([^"]*)"', page)
    assert label
    assert label[1].split("; ") == [
        "q4_k_m, rounded with care: 105 MB, difference 0.112",
        "q4_k_m: 105 MB, difference 0.160",
        "q8_0: 145 MB, difference 0.011",
        "f16: 271 MB, difference 0.000011",
    ]
    assert page.count('class="rung ') == 4 and page.count('class="rung recommended') == 1
    assert "Each line down is a tenth of the difference" in page


def test_what_is_on_its_way_stands_below_and_the_page_follows_it(ladder: World, ana: Browser):
    address = f"/builds/of/{ladder.artifact.pk}/ladder/"
    assert b'id="coming"' not in ana.get(address).content
    order = coming(ladder, "q3_k_m").order
    order.done, order.total, order.unit, order.phase_text = 60e6, 180e6, "bytes", "Writing q3_k_m"
    order.save()
    coming(ladder, "q4_k_s", status=Order.Status.QUEUED)
    page = ana.get(address)
    assert f'hx-get="{address}?coming=2"' in page.content.decode()
    assert "Writing q3_k_m 60 MB of 180 MB" in words(page) and "waiting for a free worker" in words(page)
    assert "HX-Refresh" not in ana.get(f"{address}?coming=2", headers={"HX-Request": "true"})
    assert ana.get(f"{address}?coming=3", headers={"HX-Request": "true"})["HX-Refresh"] == "true"  # one of them has come


def test_an_empty_ladder_says_what_it_is_for(acme: World, ana: Browser):
    acme.build.delete()
    page = ana.get(f"/builds/of/{acme.artifact.pk}/ladder/")
    assert "No file yet" in words(page) and "Choose types" in words(page)
    assert "checked" in field(page, "quantization", "q8_0")


def test_a_ladder_of_another_workspace_is_not_found(acme: World, rival: World, ana: Browser):
    assert ana.get(f"/builds/of/{rival.artifact.pk}/ladder/").status_code == 404
    assert ana.get(f"/builds/base/{rival.base.pk}/ladder/").status_code == 404


# The list


def test_the_list_tells_kinds_apart_and_what_did_not_pass(ladder: World, ana: Browser):
    page = ana.get("/artifacts/")
    assert "not verified" in words(page).lower()
    assert 'href="?kind=gguf_adapter"' in page.content.decode()
    assert "None of this kind yet" in words(ana.get("/artifacts/?kind=gguf_adapter"))
