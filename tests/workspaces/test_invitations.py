"""A link makes one person a member: once, before it ends, whoever it was meant for, and as what was promised."""

import re
import threading
from datetime import timedelta
from smtplib import SMTPException

import pytest
from allauth.account.models import EmailAddress
from django.core.cache import cache
from django.db import connections
from django.test import Client as Browser
from django.utils import timezone

from studio import settings as environment
from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.workspaces import inviting
from studio.workspaces.models import ApiKey, Invitation, Member, User
from studio.workspaces.people import EVERYTHING
from studio.workspaces.services import create_client, create_workspace
from studio.workspaces.throttle import TRIES
from tests.fixtures import make_invitation, make_member

PEOPLE = "/settings/people/"
INVITE = f"{PEOPLE}invitations/"
FORM = {"role": "member", "sees": "all", "email": "", "days": "7"}
ACCOUNT = {"email": "Bo@Example.com", "password": "a long enough sentence"}
PASSWORD = "another long sentence"


def browser_of(member):
    browser = Browser()
    browser.force_login(member.user)
    return browser


@pytest.fixture
def ana(acme):
    return browser_of(acme.owner)


@pytest.fixture
def smtp(settings):
    settings.SMTP_URL, settings.MAIL_FROM = "smtp://mail.example.com", "studio@acme.example"


def invited(browser, **form):
    """The path of a new link, as the page shows it."""
    answer = browser.post(INVITE, FORM | form)
    assert answer.status_code == 200, answer.content.decode()[-3000:]
    return re.search(r"http://testserver(/invite/[\w-]{43}/)", answer.content.decode()).group(1)


def gone(answer):
    return answer.status_code == 404 and "This link does not work any more" in answer.content.decode()


def person(email="eve@example.com"):
    """Somebody with an account, in a workspace of their own."""
    return create_workspace(user=User.objects.create_user(email, PASSWORD), name="Elsewhere")


# ── The good way ──


def test_somebody_new_joins_by_the_link_and_is_signed_in(acme, ana):
    link, bo = invited(ana, role="viewer"), Browser()
    shown = bo.get(link).content.decode()
    assert "Join Acme" in shown
    assert "ana@example.com invites you as viewer" in shown
    answer = bo.post(link, ACCOUNT)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    member = Member.objects.get(user__email="bo@example.com")
    assert (member.workspace, member.role, member.narrowed) == (acme.workspace, "viewer", False)
    assert bo.get("/runs/").status_code == 200
    again = Browser()
    assert again.post("/login/", {"login": "bo@example.com", "password": ACCOUNT["password"]})["Location"] == "/"


def test_who_has_an_account_joins_with_one_click_and_lands_there(acme, ana):
    link, eve = invited(ana), person()
    browser = browser_of(eve)
    assert "You are signed in as eve@example.com" in browser.get(link).content.decode()
    assert browser.post(link)["Location"] == "/"
    assert Member.objects.filter(user=eve.user).count() == 2
    assert "ana@example.com" in browser.get(PEOPLE).content.decode()


def test_who_has_an_account_signs_in_first_and_comes_back(acme, ana):
    link, eve, browser = invited(ana), person(), Browser()
    assert f"/login/?next={link.replace('/', '%2F')}" in browser.get(link).content.decode()
    refused = browser.post(link, {"email": "EVE@example.com", "password": "somebody else's password"})
    assert refused.status_code == 422
    assert "This address has an account." in refused.content.decode()
    answer = browser.post(f"/login/?next={link}", {"login": "eve@example.com", "password": PASSWORD, "next": link})
    assert answer["Location"] == link
    assert browser.post(link)["Location"] == "/"
    assert Member.objects.filter(user=eve.user, workspace=acme.workspace).exists()
    assert User.objects.get(email="eve@example.com").check_password(PASSWORD)


def test_a_guest_comes_in_for_a_client_and_sees_that_client_alone(acme, ana):
    globex = create_client(acme.owner, name="Globex")
    link = invited(ana, role="guest", clients=[globex.pk])
    gus = Browser()
    assert "For Globex." in gus.get(link).content.decode()
    gus.post(link, ACCOUNT)
    member = Member.objects.get(user__email="bo@example.com")
    assert (member.role, member.narrowed, list(member.clients.all())) == ("guest", True, [globex])
    assert gus.get("/").status_code == 200
    assert gus.get(f"/clients/{acme.client.pk}/").status_code == 404


def test_inviting_and_joining_are_on_record(acme, ana):
    Browser().post(invited(ana), ACCOUNT)
    made, joined = AuditRecord.objects.filter(verb__in=["invitation.create", "member.join"]).order_by("pk")
    assert (made.user, made.label) == (acme.owner.user, "Member by link")
    assert made.change["role"] == [None, "member"]
    assert (joined.user.email, joined.ip, joined.workspace) == ("bo@example.com", "127.0.0.1", acme.workspace)
    assert joined.change == {"role": [None, "member"], "invited by": [None, "ana@example.com"]}


# ── The link ──


def test_only_the_hash_of_a_link_is_kept_and_it_is_shown_once(acme, ana):
    link = invited(ana)
    token = link.split("/")[2]
    row = Invitation.objects.get()
    assert row.sha256 == ApiKey.hash(token)
    assert token not in repr(vars(row))
    assert token not in ana.get(PEOPLE).content.decode()
    assert token not in repr([(record.label, record.change) for record in AuditRecord.objects.all()])


@pytest.mark.parametrize(("days", "holds"), [("1", 1), ("7", 7), ("30", 30)])
def test_a_link_holds_as_long_as_was_chosen(acme, ana, days, holds):
    link = invited(ana, days=days)
    left = Invitation.objects.get().expires_at - timezone.now()
    assert timedelta(days=holds) - timedelta(minutes=1) < left <= timedelta(days=holds)
    Invitation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert gone(Browser().get(link))
    assert gone(Browser().post(link, ACCOUNT))
    assert not User.objects.filter(email="bo@example.com").exists()


def test_used_revoked_expired_and_wrong_are_one_and_the_same_page(acme, ana):
    used, revoked, expired = invited(ana), invited(ana), invited(ana)
    Browser().post(used, ACCOUNT)
    by_token = {
        name: Invitation.objects.get(sha256=ApiKey.hash(link.split("/")[2])) for name, link in (("revoked", revoked), ("expired", expired))
    }
    assert ana.post(f"{INVITE}{by_token['revoked'].pk}/revoke/")["Location"] == PEOPLE
    Invitation.objects.filter(pk=by_token["expired"].pk).update(expires_at=timezone.now())
    pages = set()
    for link in (used, revoked, expired, "/invite/wrong/", f"/invite/{'A' * 43}/", f"/invite/{'x' * 5000}/", "/invite/%00%F0%9F%98%80/"):
        for answer in (Browser().get(link), Browser().post(link, ACCOUNT | {"email": "eve@example.com"})):
            assert gone(answer), link
            pages.add(re.sub(r'csrf-token" content="[^"]*"', "", answer.content.decode()))
        cache.clear()  # so many wrong ones would be slowed down
    assert len(pages) == 1
    assert not User.objects.filter(email="eve@example.com").exists()


def test_who_guesses_is_slowed_down(acme, ana):
    link, guesser = invited(ana), Browser(REMOTE_ADDR="203.0.113.9")
    for number in range(TRIES):
        assert gone(guesser.get(f"/invite/{number}/"))
    assert gone(guesser.get(link))
    assert Browser().get(link).status_code == 200


def test_a_link_ends_with_the_rights_of_who_made_it(acme, ana):
    admin = make_member(acme.workspace, role="admin", email="adi@example.com")
    for lose in (
        lambda: Member.objects.filter(pk=admin.pk).update(role="member"),
        lambda: User.objects.filter(pk=admin.user_id).update(is_active=False),
        lambda: admin.clients.add(acme.client),
        lambda: admin.delete(),
    ):
        make_invitation(admin, link="held")
        assert Browser().get("/invite/held/").status_code == 200
        lose()
        assert gone(Browser().get("/invite/held/"))
        Invitation.objects.all().delete()
        Member.objects.filter(pk=admin.pk).update(role="admin")
        User.objects.filter(pk=admin.user_id).update(is_active=True)
        if admin.pk:
            admin.clients.clear()


def test_a_link_to_a_client_that_is_gone_opens_nothing(acme):
    globex = create_client(acme.owner, name="Globex")
    make_invitation(acme.owner, link="held", clients=[globex])
    globex.delete()
    assert gone(Browser().get("/invite/held/"))


@pytest.mark.django_db(transaction=True)
def test_a_link_that_is_used_twice_at_once_makes_one_member(queue, acme):
    for number in range(10):
        make_invitation(acme.owner, link=f"link-{number}")
        outcomes, start = [], threading.Barrier(2)

        def use(email, outcomes=outcomes, start=start, token=f"link-{number}"):
            start.wait()
            try:
                outcomes.append(inviting.accept_as_new(token, email=email, password=PASSWORD, ip=None).role)
            except inviting.Gone:
                outcomes.append("gone")
            finally:
                connections.close_all()

        threads = [threading.Thread(target=use, args=[f"{name}{number}@example.com"]) for name in ("bo", "eve")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["gone", "member"]
        assert Member.objects.filter(workspace=acme.workspace).count() == 2 + number
        assert User.objects.count() == 2 + number


# ── Whom it is for ──


def test_a_link_for_one_address_is_for_nobody_else(acme, ana):
    link, eve = invited(ana, email="Bo@Example.com"), person()
    browser = browser_of(eve)
    for answer in (browser.get(link), browser.post(link)):
        assert "This invitation is for bo@example.com, and you are eve@example.com." in answer.content.decode()
        assert "Sign out" in answer.content.decode()
    refused = Browser().post(link, ACCOUNT | {"email": "mallory@example.com"})
    assert (refused.status_code, "This invitation is for bo@example.com." in refused.content.decode()) == (422, True)
    assert Member.objects.filter(workspace=acme.workspace).count() == 1
    assert Browser().post(link, ACCOUNT).status_code == 302
    assert Member.objects.filter(user__email="bo@example.com").exists()


def test_a_link_tells_nobody_who_only_opens_it_whether_its_address_has_an_account(acme, ana):
    person()
    texts = []
    for email in ("eve@example.com", "bob@example.com"):
        link = invited(ana, email=email)
        texts.append(Browser().get(link).content.decode().replace(email, "").replace(link, ""))
    with_account, without = (re.sub(r'content="\w{64}"|value="\w{64}"|next=%2Finvite\S+', "", text) for text in texts)
    assert with_account == without
    assert 'name="password"' in with_account and "You have an account?" in with_account


def test_who_makes_an_account_that_they_have_is_led_to_signing_in(acme, ana):
    person()
    answer = Browser().post(invited(ana, email="eve@example.com"), ACCOUNT | {"email": "eve@example.com"}).content.decode()
    assert "This address has an account." in answer
    assert 'name="password"' not in answer


def test_no_address_is_known_to_be_theirs_by_a_link_that_its_maker_saw_too(acme, ana):
    Browser().post(invited(ana), ACCOUNT)
    Browser().post(invited(ana, email="eve@example.com"), ACCOUNT | {"email": "eve@example.com"})
    known = dict(EmailAddress.objects.values_list("email", "verified"))
    assert (known["bo@example.com"], known["eve@example.com"]) == (False, False)


def test_who_is_a_member_already_is_told_so_and_uses_nothing_up(acme, ana):
    max_ = make_member(acme.workspace, role="viewer", email="max@example.com")
    link, browser = invited(ana, role="admin"), browser_of(max_)
    for answer in (browser.get(link), browser.post(link)):
        assert "You are in this workspace already." in answer.content.decode()
    assert Member.objects.get(pk=max_.pk).role == "viewer"
    assert Invitation.objects.get().is_open


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"email": "no address"}, "This is not an e-mail address."),
        ({"email": f"{'x' * 300}@example.com"}, "This is not an e-mail address."),
        ({"email": ""}, "Your e-mail address is needed."),
        ({"password": "short"}, "at least 12 characters"),
        ({"password": "password1234"}, "too common"),
        ({"password": "bo@example.com"}, "too similar"),
    ],
)
def test_an_account_that_cannot_be_made_is_refused_beside_its_field(acme, ana, change, sentence):
    link = invited(ana)
    answer = Browser().post(link, ACCOUNT | change)
    assert (answer.status_code, sentence in answer.content.decode()) == (422, True), answer.content.decode()
    assert not User.objects.filter(email="bo@example.com").exists()
    assert Browser().post(link, ACCOUNT).status_code == 302


# ── Who invites whom to what ──


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"email": "max@example.com"}, "This person is in the workspace already."),
        ({"email": "no address"}, "This is not an e-mail address."),
        ({"role": "king"}, "Choose from owner"),
        ({"role": "guest"}, "Choose the client whose person this is."),
        ({"sees": "some"}, "Choose at least one client, or all."),
        ({"days": "365"}, "Choose how long the link holds."),
        ({"days": "²"}, "Choose how long the link holds."),
    ],
)
def test_an_invitation_that_cannot_be_is_refused(acme, ana, change, sentence):
    make_member(acme.workspace, role="member", email="max@example.com")
    answer = ana.post(INVITE, FORM | change)
    assert (answer.status_code, sentence in answer.content.decode()) == (422, True)
    assert not Invitation.objects.exists()


def test_admins_invite_no_owner_and_show_no_client_that_they_do_not_see(acme):
    globex = create_client(acme.owner, name="Globex")
    admin = make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client])
    browser = browser_of(admin)
    assert browser.post(INVITE, FORM | {"role": "owner"}).status_code == 422
    assert browser.post(INVITE, FORM).status_code == 422
    assert browser.post(INVITE, FORM | {"sees": "some", "clients": [globex.pk]}).status_code == 404
    invited(browser, sees="some", clients=[acme.client.pk])
    assert Invitation.objects.get().narrowed


def test_who_sees_one_client_is_not_told_who_else_is_a_member(acme):
    globex = create_client(acme.owner, name="Globex")
    make_member(acme.workspace, role="member", email="max@example.com", clients=[globex])
    make_member(acme.workspace, role="member", email="bob@example.com", clients=[acme.client])
    admin = browser_of(make_member(acme.workspace, role="admin", email="zoe@example.com", clients=[acme.client]))
    form = FORM | {"sees": "some", "clients": [acme.client.pk]}
    assert admin.post(INVITE, form | {"email": "bob@example.com"}).status_code == 422
    assert admin.post(INVITE, form | {"email": "max@example.com"}).status_code == 200


def test_who_sees_one_client_finds_only_invitations_to_it(acme, ana):
    globex = create_client(acme.owner, name="Globex")
    hidden = [
        make_invitation(acme.owner, email="hidden@example.com"),
        make_invitation(acme.owner, email="hidden2@example.com", clients=[globex]),
    ]
    shown = make_invitation(acme.owner, email="c@example.com", clients=[acme.client])
    browser = browser_of(make_member(acme.workspace, role="admin", email="adi@example.com", clients=[acme.client]))
    text = browser.get(PEOPLE).content.decode()
    assert "c@example.com" in text
    for each in hidden:
        assert each.email not in text
        assert browser.post(f"{INVITE}{each.pk}/revoke/").status_code == 404
    assert browser.post(f"{INVITE}{shown.pk}/revoke/").status_code == 302


def test_open_invitations_are_listed_until_they_are_not(acme, ana):
    link = invited(ana, email="bo@example.com", role="guest", clients=[acme.client.pk])
    shown = ana.get(PEOPLE).content.decode()
    for text in ("Open invitations", "bo@example.com", "Guest", "In-house", "ana@example.com", "Revoke"):
        assert text in shown
    Browser().post(link, ACCOUNT)
    assert "Open invitations" not in ana.get(PEOPLE).content.decode()
    row = Invitation.objects.get()
    assert ana.post(f"{INVITE}{row.pk}/revoke/").status_code == 404
    assert row.used_by.email == "bo@example.com"


def test_members_invite_nobody(acme, rival):
    for who in (make_member(acme.workspace, role="member", email="max@example.com"), rival.owner):
        assert browser_of(who).post(f"{INVITE}{make_invitation(acme.owner).pk}/revoke/").status_code == 404
    assert browser_of(Member.objects.get(user__email="max@example.com")).post(INVITE, FORM).status_code == 404


# ── By e-mail ──


@pytest.mark.django_db(transaction=True)
def test_an_invitation_is_sent_where_mail_is_set_up(queue, acme, ana, smtp, mailoutbox):
    answer = ana.post(INVITE, FORM | {"email": "bo@example.com"}).content.decode()
    assert "It was sent to bo@example.com, too." in answer
    (sent,) = mailoutbox
    assert (sent.to, sent.from_email, sent.subject) == (["bo@example.com"], "studio@acme.example", "Join Acme in Adapter Studio")
    link = re.search(r"http://testserver(/invite/[\w-]{43}/)", sent.body).group(1)
    assert link in answer
    assert Invitation.objects.get().sent_at
    assert Browser().post(link, ACCOUNT).status_code == 302


def test_so_many_invitations_are_sent_a_day_and_more_are_handed_over(acme, ana, smtp, rival):
    for number in range(inviting.MAILED_A_DAY):
        invited(ana, email=f"bo{number}@example.com")
    refused = ana.post(INVITE, FORM | {"email": "bo@example.com"})
    assert (refused.status_code, "went out by e-mail within a day" in refused.content.decode()) == (422, True)
    elsewhere = Member.objects.create(user=acme.owner.user, workspace=rival.workspace, role="owner")
    for who in (elsewhere, make_member(acme.workspace, role="admin", email="max@example.com")):
        with pytest.raises(UserError, match="No more invitations"):
            inviting.invite(who, role="viewer", clients=EVERYTHING, email="bo@example.com", days=7, link_to=lambda token: token)
    assert inviting.invite(rival.owner, role="viewer", clients=EVERYTHING, email="bo@example.com", days=7, link_to=lambda token: token)
    invited(ana)
    Invitation.objects.update(created_at=timezone.now() - timedelta(days=1, minutes=1))
    invited(ana, email="bo@example.com")


@pytest.mark.django_db(transaction=True)
def test_without_an_address_or_without_a_mail_server_nothing_is_sent(queue, acme, ana, settings, mailoutbox):
    invited(ana, email="bo@example.com")
    settings.SMTP_URL = "smtp://mail.example.com"
    invited(ana)
    assert mailoutbox == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [SMTPException("550 no"), ConnectionRefusedError(), TimeoutError()])
def test_where_the_mail_server_refuses_the_link_is_shown_all_the_same(queue, acme, ana, smtp, monkeypatch, error):
    def refuse(self, messages):
        raise error

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", refuse)
    answer = ana.post(INVITE, FORM | {"email": "bo@example.com"}).content.decode()
    assert "The mail server did not take it" in answer
    assert "/invite/" in answer
    row = Invitation.objects.get()
    assert (row.is_open, row.sent_at) == (True, None)


@pytest.mark.django_db(transaction=True)
def test_a_name_cannot_put_lines_into_a_mail(queue, acme, smtp, mailoutbox):
    acme.workspace.name = "Acme\r\nBcc: all@example.com"
    acme.workspace.save()
    acme.owner.refresh_from_db()
    inviting.invite(
        acme.owner, role="viewer", clients=EVERYTHING, email="bo@example.com", days=7, link_to=lambda token: f"http://x/{token}"
    )
    assert mailoutbox[0].subject == "Join Acme Bcc: all@example.com in Adapter Studio"
    assert mailoutbox[0].recipients() == ["bo@example.com"]


def test_nobody_is_invited_with_a_line_in_their_address(acme):
    with pytest.raises(UserError):
        inviting.invite(acme.owner, role="viewer", clients=EVERYTHING, email="bo@example.com\nBcc: all@example.com", days=7, link_to=str)


def test_where_mail_is_handed_over_is_read_from_one_address():
    read = environment.smtp("smtp://ana%40acme:p%2Fw@mail.example.com:2525?tls=1")
    assert read == {
        "host": "mail.example.com",
        "port": 2525,
        "username": "ana@acme",
        "password": "p/w",
        "use_tls": True,
        "use_ssl": False,
        "timeout": 10,
    }
    assert (environment.smtp("smtps://mail.example.com")["port"], environment.smtp("smtps://mail.example.com")["use_ssl"]) == (465, True)
    for wrong in ("mail.example.com", "http://mail.example.com", "smtp://", "smtp://mail?tls=yes"):
        with pytest.raises(environment.ImproperlyConfigured):
            environment.smtp(wrong)
