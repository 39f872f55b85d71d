"""The endpoint's traffic: calls are recorded, added up once and no more, and read the same before and after."""

import random
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from zoneinfo import ZoneInfo

import pytest
from django.apps import apps
from django.db.models import Sum
from django.utils import timezone

from studio.serving import rollup, traffic
from studio.serving.models import Call, CallDay, CallHour, CallTotal, ClientDay, ClientHour
from studio.serving.periods import Period, days
from studio.serving.reading import SHOWN, WHOLE, Asked, counts_of, over_time, sums_of, traffic_of, whole_of
from studio.serving.steps import STEPS, percentile, step_of
from tests.fixtures import make_call, make_deployment


@pytest.fixture
def deployment(acme):
    return make_deployment(acme.project, acme.release)


def ago(**delta):
    return timezone.now() - timedelta(**delta)


@pytest.mark.parametrize("seed", range(5))
def test_a_percentile_from_the_steps_is_within_a_tenth(seed):
    chance = random.Random(seed)
    seconds = sorted(min(550.0, 0.006 + chance.lognormvariate(0.5, 1.2)) for _ in range(2000))
    counts = traffic.empty()
    for each in seconds:
        counts[step_of(each)] += 1
    for share in (0.5, 0.95, 0.99):
        exact = seconds[int(share * len(seconds)) - 1]
        assert percentile(counts, share) == pytest.approx(exact, rel=0.1)


def test_the_steps_reach_from_five_milliseconds_to_ten_minutes():
    assert STEPS[0] == 0.005 and STEPS[-1] == 600
    assert percentile(traffic.empty(), 0.95) is None
    assert step_of(3600) == len(STEPS)


def test_an_hour_that_is_over_is_added_up_once(deployment):
    then = ago(hours=2)
    for seconds in (0.5, 1.0, 4.0):
        make_call(deployment, at=then, seconds=seconds)
    make_call(deployment, at=then, status=429, error="rate_limit_exceeded", seconds=0.01, first=None)
    make_call(deployment)
    rollup.roll_up()
    rollup.roll_up()
    hour = CallHour.objects.get()
    assert (hour.calls, hour.errors, hour.prompt_tokens, hour.completion_tokens) == (4, 1, 40, 20)
    assert hour.outcomes == {"200": 3, "429 rate_limit_exceeded": 1}
    assert sum(hour.seconds) == 3 and hour.seconds_sum == pytest.approx(5.5)
    assert hour.seconds[step_of(4.0)] == 1 and sum(hour.first) == 3
    assert CallTotal.objects.get().calls == 4
    assert Call.objects.filter(counted_at=None).count() == 1


def test_a_call_that_comes_late_is_added_to_its_hour(deployment):
    then = rollup.hour_of(ago(hours=3))
    make_call(deployment, at=then)
    rollup.roll_up()
    make_call(deployment, at=then + timedelta(minutes=1), canary=True)
    make_call(deployment, at=then + timedelta(minutes=2))
    rollup.roll_up()
    assert sorted(CallHour.objects.values_list("canary", "calls")) == [(False, 2), (True, 1)]
    assert sum(CallHour.objects.get(canary=False).seconds) == 2
    assert CallTotal.objects.aggregate(Sum("calls"))["calls__sum"] == 3


def test_an_hour_that_fails_halfway_is_taken_whole_the_next_time(deployment, monkeypatch):
    for hours in (5, 4):
        make_call(deployment, at=ago(hours=hours))
    put = rollup.put

    def killed(model, found, *rest, **where):
        put(model, found, *rest, **where)
        if model is CallTotal and CallHour.objects.count() == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(rollup, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        rollup.roll_up()
    monkeypatch.undo()
    assert CallHour.objects.count() == 1
    rollup.roll_up()
    assert CallHour.objects.aggregate(Sum("calls"))["calls__sum"] == 2
    assert CallTotal.objects.get().calls == 2


def test_old_calls_go_and_their_hours_stay(deployment):
    make_call(deployment, at=ago(days=31))
    young = make_call(deployment, at=ago(days=29))
    rollup.roll_up()
    assert list(Call.objects.all()) == [young]
    assert CallHour.objects.count() == 2


def test_hours_of_an_erased_client_stay_without_it(deployment):
    make_call(deployment, at=ago(hours=2))
    make_call(deployment)
    rollup.let_go(deployment.client)
    assert CallHour.objects.aggregate(Sum("calls"))["calls__sum"] == 2
    assert not CallHour.objects.exclude(client=None, deployment=None, release=None).exists()
    assert not any(model.objects.exists() for model in (CallDay, ClientDay, ClientHour))


@pytest.fixture
def weeks(deployment):
    """Calls at any time of three weeks, added up."""
    chance = random.Random(7)
    for _ in range(60):
        make_call(deployment, at=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=chance.random() * 21 * 24), seconds=chance.random() * 9)
    rollup.roll_up()
    return deployment


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Auckland"])
def test_days_and_the_hours_around_them_are_what_the_hours_are(acme, weeks, zone):
    clock = ZoneInfo(zone)
    period = Period("day", days(date(2026, 3, 4), date(2026, 3, 17), clock), clock)
    asked = Asked(acme.owner)
    by_hours = dict(sums_of(asked.hours(period.begin, period.end), "deployment_id"))
    (found,), (expected,) = counts_of(asked, period).values(), by_hours.values()
    assert 20 < expected.calls < 60 and {rows.model for rows in asked.added_up(period.begin, period.end)} >= {CallDay}
    assert [getattr(found, name) for name in WHOLE] == [getattr(expected, name) for name in WHOLE]
    times, raw = whole_of(asked, period, [weeks.pk])[weeks.pk], traffic.Sums()
    for hour in asked.hours(period.begin, period.end):
        raw.add_hour(hour)
    assert (times.p50, times.p95, times.first_p95) == (raw.p50, raw.p95, raw.first_p95)
    assert [getattr(times, name) for name in SHOWN] == [getattr(raw, name) for name in SHOWN]
    assert traffic_of(asked, period).total.outcomes == raw.outcomes


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Pacific/Auckland"])
def test_all_of_a_client_together_is_what_its_deployments_are(acme, weeks, zone):
    """The rows of a client are fewer, and read where nobody asks what answered; with `release_id` those of what answered are read."""
    other = make_deployment(acme.project, acme.release, slug="other")
    for seconds in (0.2, 7.0):
        make_call(other, at=datetime(2026, 3, 9, 12, tzinfo=UTC), seconds=seconds, canary=seconds > 1)
    make_call(other, at=datetime(2026, 3, 9, 13, tzinfo=UTC), status=503, error="busy", seconds=0.1, first=None)
    rollup.roll_up()
    assert ClientHour.objects.count() < CallHour.objects.count() and ClientDay.objects.count() < CallDay.objects.count()
    make_call(other, at=datetime(2026, 3, 9, 13, 30, tzinfo=UTC))  # one that no hour has taken
    clock = ZoneInfo(zone)
    period = Period("day", days(date(2026, 3, 2), date(2026, 3, 20), clock), clock)
    for where in ({}, {"client": acme.client.pk}):
        asked = Asked(acme.owner, where)
        together, apart = traffic_of(asked, period), traffic_of(asked, period, "release_id", "deployment_id", "canary")
        assert together.total.calls > 40 and len(apart.groups) == 3
        assert list(map(figures, together.parts)) == list(map(figures, apart.parts))
        assert figures(together.total) == figures(apart.total)
        plain = over_time(asked, period)
        assert [part.calls for part in plain.parts] == [part.calls for part in together.parts]
        assert (plain.total.errors, plain.total.completion_tokens) == (together.total.errors, together.total.completion_tokens)


def figures(sums):
    return (sums.calls, sums.errors, sums.tokens, dict(sums.outcomes), sums.seconds, sums.first, sums.p95, pytest.approx(sums.seconds_sum))


def test_a_studio_that_had_hours_before_gets_those_of_its_clients(weeks):
    before = {}
    for model, moment in ((ClientHour, "hour"), (ClientDay, "day")):
        before[model] = list(
            model.objects.order_by(moment).values(moment, "client", "calls", "prompt_tokens", "outcomes", "seconds", "first")
        )
        model.objects.all().delete()
    assert all(map(len, before.values()))
    import_module("studio.serving.migrations.0015_clients_of_the_hours_so_far").add_up(apps, None)
    for model, moment in ((ClientHour, "hour"), (ClientDay, "day")):
        found = model.objects.order_by(moment).values(moment, "client", "calls", "prompt_tokens", "outcomes", "seconds", "first")
        assert list(found) == before[model]


def test_a_studio_that_had_hours_before_gets_the_days_of_them(weeks):
    columns = ("day", "calls", "prompt_tokens", "outcomes", "seconds", "first")
    before = list(CallDay.objects.order_by("day").values(*columns))
    assert len(before) > 15
    CallDay.objects.all().delete()
    import_module("studio.serving.migrations.0009_days_of_the_hours_so_far").add_up(apps, None)
    assert list(CallDay.objects.order_by("day").values(*columns)) == before
