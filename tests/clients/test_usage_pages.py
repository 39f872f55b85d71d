"""What a month took and cost, on its page, in the CSV and in the API; and the rates that it is counted at."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.test import Client as Browser
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.clients.usage import STORAGE, bill_of
from studio.orders import storedays
from studio.orders.models import Order, Slot, StoredDay, Usage
from studio.serving import rollup
from studio.serving.models import CallHour
from studio.workspaces.models import Client, Rate
from studio.workspaces.months import Month
from studio.workspaces.pricing import set_prices
from studio.workspaces.rates import cents
from studio.workspaces.services import create_client, create_project
from tests.fixtures import HOST_FACTS, World, make_call, make_deployment, make_member, make_order, make_run

GPU = "NVIDIA H100"


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def used(acme: World, begin: datetime, *, hours: float, worker_kind: str = "CPU", gpus: int = 0, client=None, kind="train", **columns):
    """An attempt that has ended, of an order of its own."""
    client = client or acme.client
    order = make_order(acme.owner, kind=kind, client=client)
    columns = {"title": "Nightly"} | columns
    return Usage.objects.create(
        workspace=acme.workspace,
        client=client,
        order=order,
        attempt=1,
        kind=kind,
        worker_kind=worker_kind,
        gpus=gpus,
        started_at=begin,
        ended_at=begin + timedelta(hours=hours),
        **columns,
    )


def rate(acme: World, kind: str, per_hour: str, since: str) -> Rate:
    return Rate.objects.create(workspace=acme.workspace, kind=kind, per_hour=per_hour, since=since)


def bill(acme: World, month: str, *clients):
    return bill_of(acme.workspace, Month.typed(month, acme.workspace), [client.pk for client in clients or (acme.client,)])


def lines(response) -> list[list[str]]:
    from tests.workspaces.test_policy import body

    return list(csv.reader(io.StringIO(body(response).decode())))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_gpus_cost_by_the_hour_and_each(acme):
    rate(acme, GPU, "3.00", "2026-01-01")
    used(acme, at("2026-03-10T08:00"), hours=2, worker_kind=GPU, gpus=4)
    (line,) = bill(acme, "2026-03").lines
    assert (line.what, line.hours, line.gpu_hours, line.amount) == ("Nightly", 8, 8, Decimal("24.00"))
    assert bill(acme, "2026-03").sums.gpu_hours == 8


def test_a_run_is_cut_at_the_midnight_from_which_another_rate_holds(acme):
    rate(acme, "CPU", "1.00", "2026-01-01")
    rate(acme, "CPU", "2.00", "2026-03-11")
    used(acme, at("2026-03-10T22:00"), hours=5)
    found = bill(acme, "2026-03")
    assert [(line.day, line.hours, line.per_unit, line.amount) for line in found.lines] == [
        (date(2026, 3, 10), 2, Decimal("1.0000"), Decimal("2.00")),
        (date(2026, 3, 11), 3, Decimal("2.0000"), Decimal("6.00")),
    ]
    assert found.sums.total == Decimal("8.00")


def test_a_run_across_the_end_of_a_month_stands_in_both_and_the_days_are_those_of_the_workspace(acme):
    acme.workspace.time_zone = "Europe/Berlin"
    rate(acme, "CPU", "1.00", "2026-01-01")
    used(acme, at("2026-01-31T22:00"), hours=4)  # 23:00 in Berlin
    assert [bill(acme, month).sums.total for month in ("2026-01", "2026-02", "2026-03")] == [Decimal("1.00"), Decimal("3.00"), 0]


@pytest.mark.parametrize(("month", "hours"), [("2026-03", 31 * 24 - 1), ("2026-10", 31 * 24 + 1)])
def test_where_clocks_change_a_month_has_the_hours_that_pass(acme, month, hours):
    acme.workspace.time_zone = "Europe/Berlin"
    rate(acme, "CPU", "1.00", "2026-01-01")
    used(acme, at(f"{month}-01T00:00") - timedelta(days=2), hours=40 * 24)
    assert bill(acme, month).sums.total == hours
    found = Month.typed(month, acme.workspace)
    assert found.ends - found.begins == timedelta(hours=hours)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_between_two_rates_a_day_on_which_clocks_change_has_the_hours_that_pass(acme, day, hours):
    acme.workspace.time_zone = "Europe/Berlin"
    changed = date.fromisoformat(day)
    for since, price in [("2026-01-01", "1.00"), (day, "2.00"), (str(changed + timedelta(days=1)), "3.00")]:
        rate(acme, "CPU", price, since)
    used(acme, at(f"{day}T00:00") - timedelta(days=1), hours=72)
    (found,) = [line.hours for line in bill(acme, day[:7]).lines if line.per_unit == 2]
    assert found == hours


def test_before_its_first_day_a_rate_does_not_hold_and_that_is_said(acme, ana):
    rate(acme, "CPU", "1.00", "2026-03-11")
    used(acme, at("2026-03-10T08:00"), hours=1)
    found = bill(acme, "2026-03")
    assert (found.sums.total, found.unpriced) == (0, ["CPU"])
    assert "No rate is set for CPU" in ana.get("/usage/?month=2026-03").content.decode()


def test_the_server_s_own_price_holds_where_a_kind_has_no_rate_and_the_currency_is_the_same(acme, settings):
    settings.PRICE_PER_HOUR, settings.PRICE_CURRENCY = 2.4, "EUR"
    rate(acme, GPU, "3.00", "2026-01-01")
    used(acme, at("2026-03-10T08:00"), hours=1)
    assert bill(acme, "2026-03").sums.total == Decimal("2.40")
    settings.PRICE_CURRENCY = "USD"
    assert bill(acme, "2026-03").sums.total == 0


def test_small_work_of_a_kind_stands_together_and_each_run_alone(acme):
    rate(acme, "CPU", "1.00", "2026-01-01")
    for hour in (1, 2, 3):
        used(acme, at(f"2026-03-10T0{hour}:00"), hours=0.25, kind="tokens", title="")
    used(acme, at("2026-03-10T08:00"), hours=1, title="One")
    used(acme, at("2026-03-11T08:00"), hours=1, title="Two")
    assert [(line.what, line.amount) for line in bill(acme, "2026-03").lines] == [
        ("Measuring datasets", Decimal("0.75")),
        ("One", Decimal("1.00")),
        ("Two", Decimal("1.00")),
    ]


def test_lines_are_rounded_once_and_add_up_to_the_total(acme, ana):
    rate(acme, "CPU", "0.3333", "2026-01-01")
    acme.workspace.storage_price = Decimal("0.0777")
    acme.workspace.save()
    for day in range(1, 8):
        used(acme, at(f"2026-03-0{day}T08:00"), hours=0.1 * day, title=f"Run {day}")
        StoredDay.objects.create(workspace=acme.workspace, client=acme.client, day=f"2026-03-0{day}", size=3_333_333_333, price="0.0777")
    total = bill(acme, "2026-03").sums.total
    head, *rows = lines(ana.get(f"/usage/invoice.csv?month=2026-03&client={acme.client.pk}"))
    assert head[:5] == ["date", "client", "what", "worker_kind", "hours"]
    assert len(rows) == 8 and sum(Decimal(row[7]) for row in rows) == total
    _, everyone = lines(ana.get("/usage/invoice.csv?month=2026-03"))
    assert (everyone[1], Decimal(everyone[7]), everyone[8]) == (acme.client.name, total, "EUR")
    assert f"{total:,.2f} EUR" in ana.get("/usage/?month=2026-03").content.decode()
    told = acme.api.get(f"usage?month=2026-03&client={acme.client.pk}").json()
    assert Decimal(told["cost"]) == total == sum(Decimal(line["cost"]) for line in told["lines"])


def test_storage_is_counted_by_the_day_at_the_price_of_the_day(acme):
    for day, size, price in ((1, 30, "1.00"), (2, 30, "1.00"), (11, 60, "2.00")):
        StoredDay.objects.create(workspace=acme.workspace, client=acme.client, day=date(2026, 6, day), size=size * 10**9, price=price)
    found = [(line.gb_months, line.per_unit, line.amount) for line in bill(acme, "2026-06").lines]
    assert found == [(Decimal(10), Decimal("1.0000"), Decimal("10.00")), (Decimal(40), Decimal("2.0000"), Decimal("80.00"))]


def test_the_size_of_a_day_is_written_down_once(acme):
    acme.workspace.storage_price = Decimal("0.05")
    acme.workspace.save()
    assert storedays.write_down() and not storedays.write_down()
    day = StoredDay.objects.get(client=acme.client)
    assert (day.size, day.price) == (acme.artifact.size + acme.build.artifact.size, Decimal("0.05"))
    assert day.day == timezone.now().date()


def test_a_new_price_holds_for_all_of_the_day_on_which_it_is_set(acme):
    storedays.write_down()
    set_prices(acme.owner, currency="EUR", storage_price=Decimal("500000"))
    month = Month.now(acme.workspace)
    size = StoredDay.objects.get(client=acme.client).size
    owed = cents(Decimal(size) / month.days / 10**9 * 500_000)
    assert bill(acme, "").sums.amounts == {STORAGE: owed} and owed > 0
    assert not storedays.write_down()
    assert StoredDay.objects.get(client=acme.client).price == Decimal("500000")
    set_prices(acme.owner, currency="EUR", storage_price=None)
    storedays.write_down()
    assert StoredDay.objects.get(client=acme.client).price is None


def test_the_price_of_a_day_that_is_over_stays(acme):
    yesterday = timezone.now().date() - timedelta(days=1)
    StoredDay.objects.create(workspace=acme.workspace, client=acme.client, day=yesterday, size=1, price="1")
    set_prices(acme.owner, currency="EUR", storage_price=Decimal("2"))
    storedays.write_down()
    assert StoredDay.objects.get(day=yesterday).price == Decimal("1")


def test_the_bills_of_past_months_stay_as_they_are_when_a_client_is_erased(acme, ana):
    other = create_client(acme.owner, name="Other")
    for client in (acme.client, other):
        for day, size in ((date(2026, 4, 28), 30), (date(2026, 5, 20), 60), (date(2026, 6, 11), 90)):
            StoredDay.objects.create(workspace=acme.workspace, client=client, day=day, size=size * 10**9, price="1.00")
    months = ("2026-04", "2026-05", "2026-06", "2026-07", "2026-08", "2026-09")
    pages = [acme.api.get(f"usage?month={month}").json()["cost"] for month in months]
    assert Decimal(pages[2]) > Decimal(pages[0]) > 0
    other.workspace = acme.workspace
    storedays.let_go(other)
    assert not StoredDay.objects.filter(client=other).exists()
    Client.objects.filter(pk=other.pk).delete()
    assert [acme.api.get(f"usage?month={month}").json()["cost"] for month in months] == pages
    assert "No client" in ana.get("/usage/?month=2026-05").content.decode()
    rows = lines(ana.get("/usage/invoice.csv?month=2026-05"))
    assert sum(Decimal(row[7]) for row in rows[1:]) == Decimal(pages[1])
    assert bill(acme, "2026-05").sums.total < Decimal(pages[1])  # what was another's is on no client's own bill


def test_a_month_that_is_not_over_counts_what_runs_and_what_is_stored_today(acme):
    rate(acme, "CPU", "6.00", "2020-01-01")
    acme.workspace.storage_price = Decimal("1000000")
    order = make_order(acme.owner, kind="build", client=acme.client, status=Order.Status.RUNNING)
    Order.objects.filter(pk=order.pk).update(started_at=timezone.now() - timedelta(minutes=1), ended_at=None, worker="gone")
    found = bill(acme, "")
    (work,) = [line for line in found.lines if line.worker_kind == "CPU"]
    assert work.amount == Decimal("0.10")
    assert found.sums.amounts[STORAGE] > 0


def test_a_run_that_goes_on_after_a_pause_stays_one_line_of_the_invoice(acme):
    rate(acme, "CPU", "6.00", "2020-01-01")
    this = Month.now(acme.workspace)
    run = make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.RUNNING)
    begun = max(this.begins, timezone.now() - timedelta(hours=3))
    times = {"started_at": begun, "ended_at": begun + timedelta(seconds=61, microseconds=250_000)}
    columns = {"client": acme.client, "order": run.order, "kind": "train", "title": run.name, "worker_kind": "CPU"}
    Usage.objects.create(workspace=acme.workspace, attempt=1, **columns, **times)
    Order.objects.filter(pk=run.order_id).update(started_at=timezone.now() - timedelta(minutes=1), ended_at=None, attempt=2)
    (line,) = [line for line in bill(acme, "").lines if line.worker_kind == "CPU"]
    assert line.seconds == pytest.approx(61.25 + 60, abs=5)


def test_a_month_to_come_costs_nothing(acme, ana):
    acme.workspace.storage_price = Decimal("1.00")
    acme.workspace.save()
    day = timezone.now().date()
    StoredDay.objects.create(workspace=acme.workspace, client=acme.client, day=day, size=10**12, price="1.00")
    month = Month.now(acme.workspace).following
    for name in (month, month.following):
        told = acme.api.get(f"usage?month={name}&client={acme.client.pk}").json()
        assert (Decimal(told["cost"]), told["lines"]) == (0, [])
        assert "-" not in "".join(cell for row in lines(ana.get(f"/usage/invoice.csv?month={name}"))[1:] for cell in row[7:8])
        page = ana.get(f"/usage/?month={name}").content.decode()
        assert "0.00 EUR" in page and "-0." not in page and "−" not in page


def test_a_cell_is_no_formula(acme, ana):
    used(acme, at("2026-03-10T08:00"), hours=1, title="=HYPERLINK(1)")
    _, row = lines(ana.get(f"/usage/invoice.csv?month=2026-03&client={acme.client.pk}"))
    assert row[2] == "'=HYPERLINK(1)"


def test_each_client_sees_its_own_and_work_for_none_stands_apart(acme, ana):
    rate(acme, "CPU", "1.00", "2026-01-01")
    globex = create_client(acme.owner, name="Globex")
    used(acme, at("2026-03-10T08:00"), hours=1)
    used(acme, at("2026-03-10T08:00"), hours=2, client=globex)
    Usage.objects.filter(pk=used(acme, at("2026-03-10T08:00"), hours=4).pk).update(client=None)
    _, *rows = lines(ana.get("/usage/invoice.csv?month=2026-03"))
    assert [(row[1], row[7]) for row in rows] == [("Globex", "2.00"), ("In-house", "1.00"), ("No client", "4.00")]
    narrow = Browser()
    narrow.force_login(make_member(acme.workspace, role="member", email="max@example.com", clients=[globex]).user)
    _, *rows = lines(narrow.get("/usage/invoice.csv?month=2026-03"))
    assert [(row[1], row[7]) for row in rows] == [("Globex", "2.00")]
    assert narrow.get(f"/usage/invoice.csv?client={acme.client.pk}").status_code == 404


def test_a_month_that_is_none_is_refused_with_a_sentence(acme, ana):
    for typed in ("2026-13", "1", "٢٠٢٦-01", "2026-1"):
        assert "such as 2026-11" in acme.api.get(f"usage?month={typed}").json()["error"]["fields"]["month"]
    assert ana.get("/usage/?month=2026-13").status_code == 400


def test_a_foreign_client_of_the_api_is_no_client(acme, rival):
    assert acme.api.get(f"usage?client={rival.client.pk}").status_code == 404
    assert [line["client"] for line in acme.api.get("usage").json()["items"]] == [str(acme.client.pk)]


def test_an_owner_sets_currency_storage_and_rates_each_with_one_record(acme, ana):
    def records():
        return list(AuditRecord.objects.filter(verb__regex="^(price|rate)").order_by("pk").values_list("verb", flat=True))

    assert ana.post("/settings/usage/", {"currency": "usd", "storage_price": "0.05"}).status_code == 302
    assert ana.post("/settings/usage/rates/", {"kind": GPU, "per_hour": "2.40", "since": "2026-03-01"}).status_code == 302
    made = Rate.objects.get()
    assert ana.post(f"/settings/usage/rates/{made.pk}/remove/").status_code == 302
    acme.workspace.refresh_from_db()
    assert (acme.workspace.currency, acme.workspace.storage_price, made.per_hour) == ("USD", Decimal("0.05"), Decimal("2.40"))
    assert records() == ["price.save", "rate.save", "rate.remove"]
    assert ana.post("/settings/usage/", {"currency": "USD", "storage_price": "0.05"}).status_code == 302
    assert len(records()) == 3


@pytest.mark.parametrize(
    ("path", "sent", "sentence"),
    [
        ("", {"currency": "euros", "storage_price": ""}, "three letters"),
        ("", {"currency": "EUR", "storage_price": "-1"}, "such as 2.40"),
        ("", {"currency": "EUR", "storage_price": "0.00001"}, "such as 2.40"),
        ("rates/", {"kind": "CPU", "per_hour": "NaN", "since": "2026-01-01"}, "such as 2.40"),
        ("rates/", {"kind": "CPU", "per_hour": "1e9999", "since": "2026-01-01"}, "such as 2.40"),
        ("rates/", {"kind": "CPU", "per_hour": "", "since": "2026-01-01"}, "what an hour costs"),
        ("rates/", {"kind": " ", "per_hour": "1", "since": "2026-01-01"}, "name of a GPU"),
        ("rates/", {"kind": "CPU", "per_hour": "1", "since": "tomorrow"}, "Give a day"),
    ],
)
def test_what_is_no_price_is_refused_beside_its_field(acme, ana, path, sent, sentence):
    answer = ana.post(f"/settings/usage/{path}", sent)
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert not Rate.objects.exists()


def test_who_sees_some_clients_only_cannot_change_what_holds_for_all(acme):
    narrow = Browser()
    narrow.force_login(make_member(acme.workspace, role="admin", email="max@example.com", clients=[acme.client]).user)
    kept = rate(acme, "CPU", "1.00", "2026-01-01")
    narrow.post("/settings/usage/", {"currency": "USD"})
    narrow.post("/settings/usage/rates/", {"kind": "CPU", "per_hour": "9", "since": "2026-02-01"})
    narrow.post(f"/settings/usage/rates/{kept.pk}/remove/")
    acme.workspace.refresh_from_db()
    assert (acme.workspace.currency, list(Rate.objects.all())) == ("EUR", [kept])


def test_kinds_that_work_now_or_did_are_proposed(acme, ana, slot):
    Slot.objects.filter(pk=slot.pk).update(facts=HOST_FACTS | {"gpus": [{"name": "NVIDIA L4", "memory": 1}]})
    used(acme, at("2026-03-10T08:00"), hours=1, worker_kind=GPU, gpus=1)
    page = ana.get("/settings/usage/").content.decode()
    assert "CPU, NVIDIA H100, NVIDIA L4" in page


def test_requests_and_tokens_stand_beside_the_hours_and_cost_nothing_without_a_rate(acme, ana):
    deployment = make_deployment(acme.project)
    for day in ("2026-03-05T10:10", "2026-03-05T10:20", "2026-04-01T00:00"):
        make_call(deployment, at=at(day), prompt_tokens=600_000, completion_tokens=200_000)
    before = bill(acme, "2026-03", acme.client)
    rollup.roll_up()
    sums = bill(acme, "2026-03", acme.client).sums
    assert sums == before.sums
    assert (sums.requests, sums.tokens_read, sums.tokens_written, sums.total) == (2, 1_200_000, 400_000, 0)
    head, row = lines(ana.get("/usage/invoice.csv?month=2026-03"))
    assert dict(zip(head, row, strict=True))["requests"] == "2"
    page = ana.get("/usage/?month=2026-03").content.decode()
    assert "1.6 M" in page and "No rate is set" not in page


def test_tokens_cost_by_the_million_from_the_day_of_their_rate_on(acme, ana):
    deployment = make_deployment(acme.project)
    rate(acme, "Tokens", "2.50", "2026-03-10")
    for day in ("2026-03-09T23:30", "2026-03-10T00:30", "2026-03-31T12:00"):
        make_call(deployment, at=at(day), prompt_tokens=600_000, completion_tokens=200_000)
    rollup.roll_up()
    found = bill(acme, "2026-03", acme.client)
    assert found.sums.total == Decimal("4.00") and found.kinds == ["Tokens"]
    _, *rows = lines(ana.get(f"/usage/invoice.csv?month=2026-03&client={acme.client.pk}"))
    assert [(row[2], row[6], row[7], row[9]) for row in rows] == [
        ("Requests to the endpoint", "", "", "800000"),
        ("Requests to the endpoint", "2.5", "4.00", "1600000"),
    ]
    (item,) = acme.api.get("usage?month=2026-03").json()["items"]
    assert (item["requests"], item["tokens_cost"], item["hours"]) == (3, "4.00", 0)


def test_the_servers_price_of_an_hour_is_none_of_tokens(acme, settings):
    settings.PRICE_PER_HOUR, settings.PRICE_CURRENCY = 1.0, ""
    make_call(make_deployment(acme.project), at=at("2026-03-05T10:10"))
    assert bill(acme, "2026-03", acme.client).sums.total == 0


def test_what_an_erased_client_asked_stays_in_the_sums_of_its_months(acme, ana):
    rate(acme, "Tokens", "2.50", "2026-03-01")
    other = create_client(acme.owner, name="Gone")
    deployment = make_deployment(create_project(acme.owner, client=other, name="Task"))
    make_call(deployment, at=at("2026-03-05T10:10"), prompt_tokens=1_000_000, completion_tokens=0)
    before = lines(ana.get("/usage/invoice.csv?month=2026-03"))
    rollup.roll_up()
    rollup.let_go(other)
    Client.objects.filter(pk=other.pk).delete()
    after = lines(ana.get("/usage/invoice.csv?month=2026-03"))
    assert [row[7] for row in after] == [row[7] for row in before] == ["total", "2.50"]
    assert after[1][1] == "No client"
    assert not CallHour.objects.exclude(deployment=None).exists()
