"""Audit records stay as they were written: the database refuses changes, and what is done to it by hand is noticed."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from studio.audit import triggers
from studio.audit.chain import faults, seal, unguarded
from studio.audit.models import AuditChain, AuditRecord
from studio.audit.services import record
from studio.workspaces.models import Client, Member
from studio.workspaces.services import archive_client, create_client
from tests.fixtures import make_owner


@pytest.fixture
def ana(db) -> Member:
    return make_owner()


@pytest.fixture
def guarded(ana):
    """As every database is outside of tests."""
    triggers.make(connection)


def by_hand(statement: str, *values: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def newest() -> AuditRecord:
    return AuditRecord.objects.order_by("-pk")[0]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_auditrecord",
        "UPDATE audit_auditrecord SET verb = 'nothing.happened'",
        "UPDATE audit_auditrecord SET client_id = NULL, label = 'x'",
        "UPDATE audit_auditrecord SET change = '{}', at = '2000-01-01'",
    ],
)
def test_the_database_refuses_to_change_or_delete_a_record(guarded, statement):
    before = list(AuditRecord.objects.values())
    with pytest.raises(DatabaseError, match="An audit record is never"), transaction.atomic():
        by_hand(statement)
    assert list(AuditRecord.objects.values()) == before


def test_the_database_refuses_to_put_another_record_in_the_place_of_one(guarded):
    if connection.vendor == "postgresql":
        statement = "TRUNCATE audit_auditrecord"
    else:
        columns = ", ".join(f'"{field.column}"' for field in AuditRecord._meta.fields)
        statement = f"INSERT OR REPLACE INTO audit_auditrecord ({columns}) SELECT {columns} FROM audit_auditrecord"
    with pytest.raises(DatabaseError, match="An audit record is never"), transaction.atomic():
        by_hand(statement)


def test_django_does_not_change_or_delete_one_either(guarded):
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditRecord.objects.update(verb="nothing.happened")
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditRecord.objects.all().delete()
    for act in (newest().save, newest().delete):
        with pytest.raises(ValueError, match="never"):
            act()


def test_a_sealed_record_is_not_sealed_again(guarded, ana):
    assert seal() == 3
    with pytest.raises(DatabaseError), transaction.atomic():
        by_hand("UPDATE audit_auditrecord SET sha256 = 'another'")
    with pytest.raises(DatabaseError), transaction.atomic():
        by_hand("UPDATE audit_auditrecord SET place = NULL")
    create_client(ana, name="Globex")
    assert seal() == 1
    assert not list(faults(ana.workspace_id))


def test_a_client_that_is_gone_stays_on_record_with_its_name(guarded, ana):
    client = create_client(ana, name="Globex")
    Client.objects.filter(pk=client.pk).delete()
    found = newest()
    assert (found.client_id, found.client_name, found.user_email) == (client.pk, "Globex", "ana@example.com")
    assert AuditRecord.objects.select_related("client", "user").get(pk=found.pk).client is None


def test_a_person_whose_account_is_gone_stays_on_record(guarded, ana):
    user = ana.user_id
    Member.objects.filter(pk=ana.pk).delete()
    type(ana.user).objects.filter(pk=user).delete()
    assert {(found.user_id, found.user_email) for found in AuditRecord.objects.all()} == {(user, "ana@example.com")}


def test_every_workspace_has_a_chain_of_its_own(ana):
    zoe = make_owner("zoe@example.org", "Rival")
    archive_client(ana, create_client(ana, name="Globex"))
    assert seal() == 8
    assert list(AuditRecord.objects.filter(workspace=ana.workspace).order_by("id").values_list("place", flat=True)) == [1, 2, 3, 4, 5]
    assert list(AuditRecord.objects.filter(workspace=zoe.workspace).order_by("id").values_list("place", flat=True)) == [1, 2, 3]
    assert len(set(AuditRecord.objects.values_list("sha256", flat=True))) == 8
    assert not [*faults(ana.workspace_id), *faults(zoe.workspace_id)]


@pytest.fixture
def chain(ana):
    """Six records, sealed; by place."""
    for name in ("One", "Two", "Three"):
        create_client(ana, name=name)
    seal()
    return {found.place: found for found in AuditRecord.objects.all()}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("verb", "client.update"),
        ("label", "Another"),
        ("ip", "203.0.113.9"),
        ("user_email", "max@example.com"),
        ("user_id", None),
        ("client_name", "Another"),
        ("object_id", "x"),
        ("key", "nightly"),
        ("at", timezone.now() - timedelta(days=1)),
    ],
)
def test_a_record_that_was_changed_by_hand_is_noticed(ana, chain, column, value):
    AuditRecord.objects.filter(place=4).update(**{column: value})
    (told,) = faults(ana.workspace_id)
    assert told.startswith("Record 4 (id ") and told.endswith("is not as it was sealed.")


def test_what_a_record_said_before_and_after_cannot_be_changed_unnoticed(ana, chain):
    AuditRecord.objects.filter(place=2).update(change={"name": ["In-house", "Another"]})
    assert len(list(faults(ana.workspace_id))) == 1


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ([4], "Record 4 is missing."),
        ([1, 2], "Records 1 to 2 are missing."),
        ([6], "Record 6 is missing."),
        ([5, 6], "Records 5 to 6 are missing."),
    ],
)
def test_a_record_that_was_taken_out_by_hand_is_noticed(ana, chain, places, sentence):
    by_hand(f"DELETE FROM audit_auditrecord WHERE place IN ({', '.join(map(str, places))})")
    assert list(faults(ana.workspace_id)) == [sentence]


def test_records_that_changed_places_are_noticed(ana, chain):
    swap = {3: 4, 4: 3}
    AuditRecord.objects.filter(place__in=swap).update(place=None)
    for place, other in swap.items():
        AuditRecord.objects.filter(pk=chain[place].pk).update(place=other)
    assert len(list(faults(ana.workspace_id))) >= 2


def test_a_chain_whose_end_was_moved_is_noticed(ana, chain):
    AuditChain.objects.update(sha256="0" * 64)
    assert list(faults(ana.workspace_id)) == ["The chain does not end where it is said to end."]
    AuditChain.objects.all().delete()
    assert list(faults(ana.workspace_id)) == ["Nothing says where the chain ends."]


def test_records_that_nobody_seals_are_noticed(ana):
    AuditRecord.objects.update(at=timezone.now() - timedelta(hours=1))
    assert list(faults(ana.workspace_id)) == ["3 records wait to be sealed. Look whether the rounds run."]


def test_a_late_record_with_a_lower_id_is_sealed_behind(ana, chain):
    """Two transactions need not end in the order in which they took their ids."""
    late = AuditRecord(workspace=ana.workspace, verb="client.create", object_kind="client", object_id="x", label="Late", pk=-7)
    AuditRecord.objects.bulk_create([late])
    assert seal() == 1
    assert AuditRecord.objects.get(pk=-7).place == 7
    assert not list(faults(ana.workspace_id))


def check(*words: str) -> tuple[int, str, str]:
    out, err, code = StringIO(), StringIO(), 0
    try:
        call_command("check_audit", *words, stdout=out, stderr=err)
    except SystemExit as end:
        code = int(str(end.code))
    return code, out.getvalue(), err.getvalue()


def test_the_operator_is_told_that_all_is_as_it_was(guarded, ana):
    code, out, err = check()
    assert (code, err) == (0, "")
    assert f"Workspace {ana.workspace_id}: 3 records, the last one {newest().sha256}" in out
    assert "Nothing was changed or taken out." in out


def test_the_operator_is_told_what_is_wrong(guarded, ana):
    check()
    triggers.drop(connection)
    by_hand("DELETE FROM audit_auditrecord WHERE place = 2")
    code, _, err = check()
    assert code == 1
    assert "Record 2 is missing." in err
    assert unguarded() in err
    code, _, err = check("--guard")
    assert (code, unguarded()) == (1, "")
    assert "triggers" not in err


def test_a_record_is_written_in_the_transaction_of_its_change_or_not_at_all(ana):
    before = AuditRecord.objects.count()
    with pytest.raises(RuntimeError, match="halfway"), transaction.atomic():
        record(ana, "client.update", ana.workspace.clients.get())
        raise RuntimeError("halfway")
    assert AuditRecord.objects.count() == before


@pytest.mark.django_db(transaction=True)
def test_a_record_outside_of_a_transaction_is_a_bug():
    member = make_owner()
    with pytest.raises(RuntimeError, match="in the transaction of its change"):
        record(member, "client.update", member.workspace)
