"""The audit log: found by client, person, object, act and day, page by page, as a file and through the API, and only by who may."""

import csv
import io
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.audit.chain import seal
from studio.audit.finding import Wanted
from studio.audit.models import AuditRecord
from studio.audit.services import history
from studio.workspaces.services import archive_client, create_client, create_project, update_client
from tests.fixtures import Api, make_key, make_member, make_owner

LOG = "/settings/audit/"
FILE = "/settings/audit/file/"


def open_for(member):
    opened = Browser()
    opened.force_login(member.user)
    return opened


@pytest.fixture
def ana(db):
    return make_owner()


@pytest.fixture
def max_(ana):
    return make_member(ana.workspace, role="admin", email="max@example.com")


@pytest.fixture
def globex(ana, max_):
    """A client with a history by two people."""
    made = create_client(ana, name="Globex")
    create_project(max_, client=made, name="Letters")
    update_client(max_, made, name="Globex Ltd", slug="gx")
    return made


@pytest.fixture
def window(ana, globex):
    return open_for(ana)


def labels(answer):
    """What the rows of the page are about, in their order."""
    text = answer.content.decode()
    return [piece.split("</a>")[0].split(">")[-1] for piece in text.split('title="History of ')[1:]]


def test_the_newest_act_stands_first_with_who_what_and_from_where(window):
    window.post("/clients/new/", {"name": "Initech"})
    answer = window.get(LOG)
    text = answer.content.decode()
    assert labels(answer)[:3] == ["Initech", "Globex Ltd", "Letters"]
    row = text.split("<tbody>")[1].split("</tr>")[0]
    assert all(word in row for word in ("ana@example.com", "127.0.0.1", "client.create", "Initech"))


def test_what_was_and_what_is_stands_beside_each_other(window):
    text = window.get(LOG).content.decode()
    assert '<span class="muted">name</span> <span class="soft">Globex</span>' in text
    assert "</span> Globex Ltd</li>" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"held_out": [False, True]}, "no|yes"),
        ({"scopes": [None, ["read", "train"]]}, "|read, train"),
        ({"parts": [["a"], []]}, "a|–"),
        ({"rows": 7}, "|7"),
        ({"told": {"deep": [1, {"a": None}]}}, "|{&quot;deep&quot;: [1, {&quot;a&quot;: null}]}"),
        ({"text": ["", "<b>bold</b>"]}, "–|&lt;b&gt;bold&lt;/b&gt;"),
    ],
)
def test_every_kind_of_change_is_read_in_words(ana, window, value, shown):
    AuditRecord.objects.create(workspace=ana.workspace, verb="x.change", object_kind="x", object_id="1", label="X", change=value)
    item = window.get(LOG).content.decode().split('<ul class="audit-changes">')[1].split("</li>")[0]
    before, after = shown.split("|")
    assert (f'<span class="soft">{before}</span>' in item) == bool(before)
    assert item.endswith(after)


def test_a_long_value_is_cut_and_whole_on_hover(ana, window):
    text = "word " * 100
    AuditRecord.objects.create(
        workspace=ana.workspace, verb="x.change", object_kind="x", object_id="1", label="X", change={"note": [None, text]}
    )
    page = window.get(LOG).content.decode()
    assert f'title="{text}"' in page
    assert page.count(text) == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("client={globex}", ["Globex Ltd", "Letters", "Globex"]),
        ("person={max}", ["Globex Ltd", "Letters"]),
        ("person={max}&kind=project", ["Letters"]),
        ("kind=client&client={globex}", ["Globex Ltd", "Globex"]),
        ("object={globex}", ["Globex Ltd", "Globex"]),
        ("verb=client.update", ["Globex Ltd"]),
        ("verb=client.update&person={ana}", []),
        ("verb=nothing.such", []),
        ("object=%27%20OR%201=1", []),
        ("client=00000000-0000-4000-8000-000000000000", []),
        ("person=999999", []),
    ],
)
def test_records_are_found(ana, max_, globex, window, query, found):
    query = query.format(globex=globex.pk, max=max_.user_id, ana=ana.user_id)
    answer = window.get(f"{LOG}?{query}")
    assert labels(answer) == found
    assert ("Show all" in answer.content.decode()) is True
    told = {"".join(row["label"]) for row in read_json(window.get(f"{FILE}?{query}&format=json"))}
    assert told == set(found)


@pytest.mark.parametrize("query", ["client=seven", "person=max", "person=-1x", "client=%00seven"])
def test_an_id_that_is_none_is_not_found(window, query):
    assert window.get(f"{LOG}?{query}").status_code == 404
    assert window.get(f"{FILE}?{query}").status_code == 404


@pytest.mark.parametrize("day", ["31.12.2030", "2030-02-30", "soon", "0001-01-01", "9999-12-31"])
def test_a_day_that_is_none_is_refused_beside_its_field(window, day):
    for field in ("since", "until"):
        answer = window.get(f"{LOG}?{field}={day}")
        assert answer.status_code == 422
        assert '<p class="field-error">Give a day' in answer.content.decode()
        assert window.get(f"{FILE}?{field}={day}").status_code == 400


def test_days_are_those_of_the_workspace_and_both_count(ana, window):
    ana.workspace.time_zone = "Pacific/Auckland"  # UTC+13 in January
    ana.workspace.save()
    AuditRecord.objects.all().delete()
    for hour in (9, 10, 11, 12):
        made = AuditRecord.objects.create(workspace=ana.workspace, verb="x", object_kind="x", object_id="x", label=f"At {hour}")
        AuditRecord.objects.filter(pk=made.pk).update(at=datetime(2030, 1, 30, hour, 30, tzinfo=UTC))
    assert labels(window.get(f"{LOG}?since=2030-01-31")) == ["At 12", "At 11"]
    assert labels(window.get(f"{LOG}?until=2030-01-30")) == ["At 10", "At 9"]
    assert labels(window.get(f"{LOG}?since=2030-01-30&until=2030-01-30")) == ["At 10", "At 9"]
    assert labels(window.get(f"{LOG}?since=2030-02-01")) == labels(window.get(f"{LOG}?until=2029-02-01")) == []


def test_pages_go_on_where_the_last_one_ended_also_while_more_is_written(ana, window):
    many = [AuditRecord(workspace=ana.workspace, verb="x", object_kind="x", object_id="x", label=f"No. {number}") for number in range(120)]
    AuditRecord.objects.bulk_create(many)
    first = window.get(f"{LOG}?verb=x")
    assert labels(first)[0] == "No. 119"
    older = link(first, "Older")
    create_client(ana, name="Meanwhile")
    second = window.get(LOG + older)
    assert labels(first)[-1:] + labels(second)[:1] == ["No. 70", "No. 69"]
    third = window.get(LOG + link(second, "Older"))
    assert labels(third) == [f"No. {number}" for number in range(19, -1, -1)]
    assert "Older" not in third.content.decode()
    assert labels(window.get(LOG + link(third, "Newer"))) == labels(second)
    assert labels(window.get(LOG + link(second, "Newer"))) == labels(first)


def link(answer, text):
    before = answer.content.decode().split(f">{text}</a>")[0]
    return before.split('href="')[-1].split('"')[0].replace("&amp;", "&")


def test_a_page_number_that_is_none_begins_at_the_beginning(window):
    assert labels(window.get(f"{LOG}?before=x")) == labels(window.get(f"{LOG}?after={'9' * 30}")) == labels(window.get(LOG))


def test_what_is_gone_is_found_by_the_name_that_it_had(ana, globex, window):
    archive_client(ana, globex)
    type(globex).objects.filter(pk=globex.pk).delete()
    page = window.get(f"{LOG}?client={globex.pk}").content.decode()
    assert f'<option value="{globex.pk}" selected>Globex' in page
    assert labels(window.get(f"{LOG}?client={globex.pk}")) == ["Globex Ltd", "Globex Ltd", "Letters", "Globex"]


# ── Files ──


def body(answer):
    assert answer.status_code == 200

    async def everything():
        return b"".join([piece async for piece in answer.streaming_content])

    return async_to_sync(everything)().decode()


def read_csv(answer):
    return list(csv.DictReader(io.StringIO(body(answer))))


def read_json(answer):
    return json.loads(body(answer))


def test_a_file_has_all_that_is_found(ana, globex, window):
    seal()
    rows = read_csv(window.get(f"{FILE}?format=csv"))
    assert [row["verb"] for row in rows] == [
        "client.update",
        "project.create",
        "client.create",
        "project.create",
        "client.create",
        "workspace.create",
    ]
    update = rows[0]
    assert (update["user"], update["client"], update["client_name"]) == ("max@example.com", str(globex.pk), "Globex Ltd")
    assert json.loads(update["change"]) == {"name": ["Globex", "Globex Ltd"], "slug": ["globex", "gx"]}
    assert datetime.fromisoformat(update["at"]).tzinfo is not None
    assert update["sha256"] == AuditRecord.objects.get(verb="client.update").sha256
    told = read_json(window.get(f"{FILE}?format=json"))
    assert [row["id"] for row in told] == [int(row["id"]) for row in rows]
    assert told[0]["change"]["name"] == ["Globex", "Globex Ltd"]


def test_a_file_of_many_is_sent_in_pieces_and_is_whole(ana, window):
    many = [AuditRecord(workspace=ana.workspace, verb="x", object_kind="x", object_id="x", label=f"No. {number}") for number in range(1203)]
    AuditRecord.objects.bulk_create(many)
    for format, read in (("csv", read_csv), ("json", read_json)):
        labels = [row["label"] for row in read(window.get(f"{FILE}?verb=x&format={format}"))]
        assert labels == [f"No. {number}" for number in range(1202, -1, -1)]


def test_a_file_of_nothing_is_a_file(window):
    assert read_csv(window.get(f"{FILE}?verb=none")) == read_json(window.get(f"{FILE}?verb=none&format=json")) == []


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_calculated_with(ana, window, name):
    AuditRecord.objects.create(workspace=ana.workspace, verb="x", object_kind="x", object_id="x", label=name, key=name, client_name=name)
    (row,) = read_csv(window.get(f"{FILE}?verb=x"))
    assert row["label"] == row["key"] == row["client_name"] == f"'{name}"


def test_a_file_is_for_saving_and_of_a_known_kind(window):
    answer = window.get(f"{FILE}?format=csv")
    assert answer["Content-Disposition"] == 'attachment; filename="audit.csv"'
    assert (answer["X-Content-Type-Options"], "sandbox" in answer["Content-Security-Policy"]) == ("nosniff", True)
    assert window.get(f"{FILE}?format=xlsx").status_code == 400


def test_reading_the_log_writes_no_record(window):
    before = AuditRecord.objects.count()
    for address in (LOG, f"{FILE}?format=csv", f"{FILE}?format=json"):
        assert window.get(address).status_code == 200
    assert AuditRecord.objects.count() == before


# ── Who may ──


@pytest.mark.parametrize("role", ["member", "viewer", "guest"])
def test_the_log_is_for_owners_and_admins(ana, globex, role):
    window = open_for(make_member(ana.workspace, role=role, email="eve@example.com", clients=[globex]))
    assert [window.get(address).status_code for address in (LOG, FILE)] == [404, 404]


def test_an_admin_of_one_client_reads_only_what_was_done_for_it(ana, globex):
    initech = create_client(ana, name="Initech")
    window = open_for(make_member(ana.workspace, role="admin", email="eve@example.com", clients=[globex]))
    for query in ("", f"?client={initech.pk}", f"?object={initech.pk}", f"?person={ana.user_id}", "?verb=client.create"):
        assert "Initech" not in window.get(LOG + query).content.decode()
        assert "Initech" not in body(window.get(FILE + query))
    assert labels(window.get(LOG)) == ["Globex Ltd", "Letters", "Globex"]


def test_another_workspace_is_not_in_it(ana, window):
    zoe = make_owner("zoe@example.org", "Rival")
    foreign = zoe.workspace.clients.get()
    for query in ("", f"?client={foreign.pk}", f"?object={foreign.pk}", f"?person={zoe.user_id}"):
        page = window.get(LOG + query).content.decode()
        assert "zoe@example.org" not in page and "Rival" not in page
        assert "Rival" not in body(window.get(FILE + query))
    api = Api(make_key(ana))
    assert api.get(f"audit?client={foreign.pk}").json()["items"] == api.get(f"audit?person={zoe.user_id}").json()["items"] == []


# ── Through the API ──


def test_a_script_keeps_a_copy_up_to_date(ana, globex):
    api = Api(make_key(ana))
    first = api.get("audit?limit=4").json()
    assert [item["verb"] for item in first["items"]] == ["workspace.create", "client.create", "project.create", "client.create"]
    rest = api.get(first["next"]).json()
    assert [item["verb"] for item in rest["items"]] == ["project.create", "client.update"]
    assert rest["next"] is None
    last = rest["items"][-1]
    assert api.get(f"audit?after={last['id']}").json()["items"] == []
    assert (last["user"], last["client"], last["client_name"]) == ("max@example.com", str(globex.pk), "Globex Ltd")


def test_a_script_finds_what_the_page_finds(ana, max_, globex):
    api = Api(make_key(ana))
    now = timezone.now()
    for query, count in (
        (f"client={globex.pk}", 3),
        (f"person={max_.user_id}", 2),
        (f"object={globex.pk}", 2),
        ("kind=project", 2),
        ("verb=client.update", 1),
        (f"since={now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", 6),
        (f"since={now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", 0),
        (f"until={now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", 0),
    ):
        assert len(api.get(f"audit?{query}").json()["items"]) == count, query
    filtered = api.get(f"audit?client={globex.pk}&limit=2").json()
    assert len(api.get(filtered["next"]).json()["items"]) == 1
    for wrong in ("client=seven", "since=soon", "since=2030-01-01T00:00:00", "persons=1"):
        assert api.get(f"audit?{wrong}").status_code == 422, wrong


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00%2B14:00", "1999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "2101-01-01T00:00:00Z"]
)
def test_a_moment_at_the_ends_of_the_calendar_is_refused(ana, moment):
    api = Api(make_key(ana))
    for name in ("since", "until"):
        refused = api.get(f"audit?{name}={moment}")
        assert (refused.status_code, list(refused.json()["error"]["fields"])) == (422, [name])
    assert api.get("audit?since=2000-01-01T00:00:00%2B14:00&until=2100-12-31T23:59:59-14:00").status_code == 422
    assert api.get("audit?since=2000-01-01T00:00:00-14:00&until=2100-12-31T23:59:59%2B14:00").status_code == 200


# ── At scale ──


def fill(workspace, count):
    """Records over a year, of many clients, people and objects, rare ones and frequent ones."""
    clients = [create_client(make_owner_of(workspace), name=f"Client {number}") for number in range(5)]
    start = timezone.now() - timedelta(days=365)
    rows = [
        AuditRecord(
            workspace=workspace,
            client=clients[number % 5],
            user_id=number % 7 + 1000,
            verb=f"verb.{number % 50}" if number % 10_000 else "rare.verb",
            object_kind=f"kind{number % 20}" if number % 10_000 else "rare",
            object_id=str(number % 1000),
            label=f"No. {number}",
        )
        for number in range(count)
    ]
    AuditRecord.objects.bulk_create(rows, batch_size=1000)
    table = AuditRecord._meta.db_table
    first = AuditRecord.objects.filter(label="No. 0").get().pk
    for part in range(12):
        begin = first + part * count // 12
        AuditRecord.objects.filter(pk__gte=begin, pk__lt=first + (part + 1) * count // 12).update(at=start + timedelta(days=30 * part))
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {table}")
    return clients


def make_owner_of(workspace):
    return workspace.members.get(role="owner")


def test_every_filter_reads_a_page_by_an_index(ana):
    """Nothing is sorted and no table is scanned, whatever is asked for and however many records there are."""
    clients = fill(ana.workspace, 24_000)
    filters = {
        "none": Wanted(),
        "client": Wanted(client=clients[0].pk),
        "user": Wanted(user=1003),
        "object": Wanted(object="77"),
        "kind": Wanted(kind="rare"),
        "verb": Wanted(verb="rare.verb"),
        "days long ago": Wanted(since=timezone.now() - timedelta(days=340), until=timezone.now() - timedelta(days=300)),
        "client and days": Wanted(client=clients[1].pk, since=timezone.now() - timedelta(days=340)),
    }
    for name, wanted in filters.items():
        started = time.perf_counter()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            rows = wanted.of(history(ana), workspace=ana.workspace_id).order_by("-id")[:51]
            assert len(list(rows)) >= 3, name
        assert time.perf_counter() - started < 5, name
        assert len(queries) <= 4
        plan = rows.explain().lower()
        assert "temp b-tree" not in plan and "sort" not in plan, f"{name}: {plan}"
        assert "scan audit_auditrecord" not in plan and "seq scan on audit_auditrecord" not in plan, f"{name}: {plan}"


def test_the_page_takes_as_many_queries_for_fifty_records_as_for_one(ana, window):
    counts = []
    for number in (1, 60):
        for each in range(number):
            create_client(ana, name=f"Client {number} {each}")
        with CaptureQueriesContext(connection) as queries:
            assert window.get(LOG).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1]
