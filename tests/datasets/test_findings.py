"""What should be looked at in a dataset is found, told in plain words, and nothing secret is shown while doing so."""

import json

import pytest
from django.urls import reverse

from studio.datasets import findings, personal, rows
from studio.datasets.flags import FINDINGS, Flag
from studio.datasets.languages import tell
from studio.datasets.models import Draft
from tests.datasets.made import browser_of, upload
from tests.fixtures import make_member

KEY = "sk-" + "a1B2" * 8


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def ordinary(number):
    """Rows that resemble each other in nothing but being English."""
    things = [
        "lamp",
        "river",
        "market",
        "garden",
        "letter",
        "engine",
        "winter",
        "bridge",
        "kettle",
        "orchard",
        "violin",
        "harbour",
        "candle",
        "meadow",
        "ladder",
    ]
    one, two = things[number % 15], things[(number // 15) % 15]
    return chat(
        f"How does a {one} differ from a {two} number {number}?",
        f"Case {number}: one calls it {one}{number} where {two}{number} was meant.",
    )


def flagged(job, name):
    """The indices of the rows with a finding."""
    flag = next(finding.flag for finding in FINDINGS if finding.name == name)
    return [row["index"] for row in rows.page(job.out / "rows.parquet", limit=500, flags=int(flag))]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("I am {{name}}.", "placeholder"),
        ("Your order {{Order Number}} is on its way.", "placeholder"),
        ("Kind regards,\n[Your Name]", "placeholder"),
        ("Dear <CUSTOMER>, thank you for waiting.", "placeholder"),
        ("Hello {customer_name}, thank you for waiting.", "placeholder"),
        ("Stop<|im_end|>", "control"),
        ("<｜end▁of▁sentence｜> and so on", "control"),
        ("[/INST] and so on", "control"),
        ("abc\u202edef", "hidden"),
        ("zero\u200bwidth", "hidden"),
        ("red \x1b[31m alert", "hidden"),
        ("hidden" + "".join(chr(0xE0000 + ord(letter)) for letter in "say yes"), "hidden"),
        (f"The key is {KEY}.", "secret"),
        (f"First line\n{KEY}", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow", "secret"),
        ("postgres://app:hunter22hunter@db.internal/orders", "secret"),
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "secret"),
        ("Write to ana@example.org.", "personal"),
        ("Write to first.last+tag@mail.example.co.uk", "personal"),
        ("Call +49 30 901820 after nine.", "personal"),
        ("Call (212) 736-5000 after nine.", "personal"),
        ("Pay to DE89 3704 0044 0532 0130 00.", "personal"),
        ("Pay to GB29NWBK60161331926819.", "personal"),
        ("The card is 4111 1111 1111 1111.", "personal"),
        ("The card is 378282246310005.", "personal"),
        ("N/A", "empty"),
        ("...", "empty"),
        ("sorry!", "empty"),
    ],
)
def test_a_row_that_should_be_looked_at_is_found(write, import_file, job, answer, name) -> None:
    result = import_file(write("a.jsonl", [ordinary(number) for number in range(20)] + [chat("And what is this?", answer)]))
    assert result["findings"] == {name: 1}
    assert flagged(job, name) == [20]
    assert [example["index"] for example in result["examples"][name]] == [20]


@pytest.mark.parametrize(
    "answer",
    [
        "Family 👨\u200d👩\u200d👧, flag 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f, “quotes”, a < b, {x}, sk-ip, @me",
        "Use `users[name]` or [name](https://example.org) or [Name]: see below; HTML </span> and List<NAME_T>.",
        'Write f"Hello {customer_name}" or "{full_name}".format(full_name=name).',
        "Version 1.2.3.4, ISBN 978-3-16-148410-0, order 4111111111111112, at 2024-11-02 10:30, 3 + 4 = 7, 1,234,567,890.",
        "Call 555-123-4567 in a film, or dial 1-2-3.",
        "The account XX00 1234 5678 9012 does not exist.",
        "[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\\.[a-zA-Z]{2,}",
        "https://user:password@example.org is how a login in an address is written, as is postgres://user:${SECRET}@host/db.",
        "No",
        "7",
    ],
)
def test_ordinary_text_is_left_alone(write, import_file, answer) -> None:
    result = import_file(write("a.jsonl", [ordinary(number) for number in range(20)] + [chat("And what is this?", answer)]))
    assert result["findings"] == {}
    assert result["warnings"] == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("212 <|im_end|>", "1 row contains control tokens such as <|im_end|>; they will be treated as plain text."),
        ("abc\u202edef", "1 row contains invisible or direction-changing characters such as \\u202E."),
        (KEY, "1 row contains what looks like a secret key (sk-a…). A model can repeat what it has learnt."),
        ("ana@example.org", "1 row contains e-mail addresses. A model can repeat what it has learnt."),
        ("DE89370400440532013000", "1 row contains bank account numbers, IBAN (DE… 00). A model can repeat what it has learnt."),
        ("4111-1111-1111-1111", "1 row contains payment card numbers (… 11). A model can repeat what it has learnt."),
        ("+49 30 901820", "1 row contains phone numbers (… 20). A model can repeat what it has learnt."),
    ],
)
def test_the_warning_says_how_many_and_shows_nothing_secret(write, import_file, text, sentence) -> None:
    assert import_file(write("a.jsonl", [ordinary(number) for number in range(20)] + [{"messages": chat("What?", text)["messages"]}]))[
        "warnings"
    ] == [sentence]


def test_no_example_shows_a_secret_or_a_person(write, import_file) -> None:
    row = chat(
        f"My key {KEY} and ana.berg@example.org, please keep them", "Pay DE89 3704 0044 0532 0130 00, card 4111 1111 1111 1111 {{name}}"
    )
    result = import_file(write("a.jsonl", [ordinary(number) for number in range(20)] + [row, row]))
    assert set(result["findings"]) == {"secret", "personal", "placeholder", "duplicate"}
    shown = json.dumps([result["examples"], result["warnings"]])
    for part in (KEY[4:], "ana.berg", "0532", "1111"):
        assert part not in shown
    assert "{{name}}" in shown
    assert result["placeholders"] == ["name"]


def test_what_a_tool_is_called_with_is_looked_at_too() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "send", "arguments": {"to": ["ana@example.org"], "times": 2}}}
    row = {"messages": [{"role": "user", "content": "Send it"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert [found.kind for text in findings.texts_of(row) for found in personal.personal(text)] == ["e-mail"]
    assert not findings.says_nothing(row)


@pytest.mark.parametrize("flag", findings.LOOKS)
def test_every_find_has_a_sign_that_is_searched_for_first(flag) -> None:
    """Else rows would be passed over that a pattern knows."""
    import pyarrow as pa

    texts = {
        Flag.PLACEHOLDER: ["{{ name }}", "[insert date]", "[NAME]", "[Last Name]", "[City]", "<ORDER ID>", "<FIRST_NAME>", "{order_id}"],
        Flag.CONTROL: ["<|user|>", "</s>", "[INST]", "[TOOL_CALLS]", "[/TOOL_RESULTS]", "<<SYS>>", "<end_of_turn>", "<pad>", "<｜User｜>"],
        Flag.HIDDEN: ["\u200e", "\u2066", "\ufeff", "\x07", "\x7f", "\U000e0041"],
        Flag.SECRET: [
            KEY,
            "ghp_" + "a" * 36,
            "AKIA" + "A1" * 8,
            "xoxb-1234567890",
            "sk_live_" + "a" * 24,
            "redis://u:longsecret@h.example",
        ],
        Flag.PERSONAL: ["a%@b.org", "+1 212 736 5000", "212.736.5000", "FR1420041010050500013M02606", "3782-822463-10005"],
    }[flag]
    lines = [{"text": text} for text in texts]
    flags = findings.Alone().look(pa.array([json.dumps(line, ensure_ascii=False) for line in lines]), lines)
    assert [text for text, found in zip(texts, flags.tolist(), strict=True) if not found & flag] == []


def test_languages_are_counted_and_a_stranger_is_found(write, import_file, job) -> None:
    german = "Bitte senden Sie mir die Rechnung für den Monat März noch einmal zu, denn ich finde sie nicht mehr."
    result = import_file(write("a.jsonl", [ordinary(number) for number in range(30)] + [chat("What does it say?", german)]))
    assert result["findings"] == {"language": 1}
    assert flagged(job, "language") == [30]
    assert result["languages"]["looked_at"] == 31
    assert result["languages"]["rows"]["de"] == 1
    assert result["languages"]["rows"]["en"] >= 28


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I reset my password?", "en"),
        ("Wie setze ich mein Passwort zurück?", "de"),
        ("Comment réinitialiser mon mot de passe ?", "fr"),
        ("¿Cómo restablezco mi contraseña?", "es"),
        ("Jak mogę zresetować hasło?", "pl"),
        ("Как мне сбросить пароль?", "ru"),
        ("パスワードをリセットするにはどうすればいいですか？", "ja"),
        ("请把三月份的发票发给我，谢谢您的帮助。", "zh"),
        ("42", ""),
        ("def f(x): return x**2", ""),
    ],
)
def test_the_language_of_a_short_answer_is_told(text, language) -> None:
    assert tell(text)[0] == language


def test_turns_and_roles_are_counted(write, import_file) -> None:
    long = {"messages": [{"role": ("user", "assistant")[n % 2], "content": f"message {n}"} for n in range(40)]}
    statistics = import_file(write("a.jsonl", [ordinary(1), ordinary(2), long]))["statistics"]
    assert statistics["turns"]["rows"] == {"2": 2, "20": 1}
    assert statistics["roles"] == {"user": 22, "assistant": 22}


# --- the page --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def version(acme):
    lines = [ordinary(number) for number in range(40)]
    lines[3] = chat("Who are you then?", "I am {{name}} of {{company}}.")
    lines[5] = chat("What is the key?", f"It is {KEY}.")
    lines[7] = lines[8]
    return upload(acme, lines, name="Looked at")


def test_a_person_sees_what_to_look_at_and_goes_there(acme, version) -> None:
    ana = browser_of(acme.owner.user)
    page = ana.get(reverse("datasets:version", args=[version.pk])).content.decode()
    for text in ("What to look at", "Unfilled placeholders", "Keys and passwords", "Exact duplicates", "sk-a…", "Languages of the answers"):
        assert text in page
    assert KEY not in page
    address = reverse("datasets:rows", args=[version.pk]) + "?finding=placeholder"
    assert address in page
    assert [row.number for row in ana.get(address).context["rows"]] == [4]


def test_a_person_drops_fixes_and_keeps_from_there(acme, version) -> None:
    ana = browser_of(acme.owner.user)
    rule, page = reverse("datasets:draft_rule", args=[version.pk]), reverse("datasets:version", args=[version.pk])
    ana.post(rule, {"finding": "duplicate", "do": "drop"})
    ana.post(rule, {"finding": "secret", "do": "fix"})
    ana.post(rule, {"finding": "placeholder", "do": "fix", "value_name": "Ada", "value_company": "Acme"})
    said = ana.get(page).content.decode()
    assert said.count("dropped when you save") == 1
    assert said.count("fixed when you save") == 2
    ana.post(rule, {"finding": "duplicate", "do": "keep"})
    assert [each["finding"] for each in Draft.objects.get(version=version).changes["rules"]] == ["secret", "placeholder"]


def test_a_viewer_looks_and_changes_nothing(acme, version) -> None:
    page = (
        browser_of(make_member(acme.owner.workspace, role="viewer", email="vi@example.com").user)
        .get(reverse("datasets:version", args=[version.pk]))
        .content.decode()
    )
    assert "Look at them" in page
    assert "Drop them" not in page
    assert "goes into your draft" not in page


def test_a_clean_dataset_has_nothing_to_look_at(acme) -> None:
    clean = upload(acme, [ordinary(number) for number in range(40)], name="Clean")
    page = browser_of(acme.owner.user).get(reverse("datasets:version", args=[clean.pk])).content.decode()
    assert "Nothing to look at" in page
