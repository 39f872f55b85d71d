"""The list of runs: whose may be asked for, and what stands in a row."""

import pytest
from django.test import Client as Browser

from studio.workspaces.services import create_client
from tests.fixtures import make_run


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def test_a_client_is_chosen_among_all_by_name(acme, ana):
    other = create_client(acme.owner, name="<Globex> & sons")
    page = ana.get(f"/runs/?client={other.pk}").content.decode()
    assert f'<option value="{other.pk}" selected>&lt;Globex&gt; &amp; sons</option>' in page
    assert f'<option value="{acme.client.pk}">{acme.client.name}</option>' in page


@pytest.mark.parametrize(("status", "said"), [("succeeded", "Done"), ("failed", "Failed"), ("queued", "Queued")])
def test_each_run_has_its_own_state(acme, ana, status, said):
    made = {make_run(acme.owner, acme.project, acme.base, acme.version, status=each).pk: each for each in ("succeeded", status, "stopped")}
    for url in ("/runs/", f"/projects/{acme.project.pk}/", f"/clients/{acme.client.pk}/"):
        rows = {pk: row for row in ana.get(url).content.decode().split("<tr")[1:] for pk in made if f"/runs/{pk}/" in row}
        assert {pk: f"status status-{made[pk]}" in row for pk, row in rows.items()} == dict.fromkeys(made, True)
        assert all(f"\n{said}</span>" in row for pk, row in rows.items() if made[pk] == status)
