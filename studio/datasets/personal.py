"""Where a text holds secrets or personal data: kinds, places, and masks to show or to put there. Which rows are looked at is `findings`'.

Providers' keys have beginnings of their own, and numbers have check digits, so that prose seldom looks like them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import phonenumbers

Kind = Literal["secret", "e-mail", "phone", "iban", "card"]
WORDS: dict[Kind, str] = {
    "secret": "what looks like a secret key",
    "e-mail": "e-mail addresses",
    "phone": "phone numbers",
    "iban": "bank account numbers (IBAN)",
    "card": "payment card numbers",
}
"""Each kind in many, as sentences name it."""

SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{30,}|xox[abeprs]-[0-9A-Za-z-]{10,}"
    r"|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{50,}|SG\.[\w-]{16,32}\.[\w-]{16,64}"
    r"|gsk_[A-Za-z0-9]{40,}|dop_v1_[0-9a-f]{40,}|shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}|eyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{20,}"
    r"|AccountKey=[A-Za-z0-9+/]{60,}={0,2}|[a-z][a-z0-9+]{1,14}://[^\s/:@]{1,64}:(?!\*|<|\{|\$|pass|PASS|secret|xxx)[^\s/:@]{3,64}@[\w.-]{3,}"
    r")|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:[A-Za-z0-9+/=\s\\]{0,8000}-----END [A-Z ]{0,20}PRIVATE KEY-----)?"
)
SECRET_SIGNS = (
    r"sk-\w|[sr]k_(?:live|test)_|hf_\w|gh[pousr]_\w|github_pat_|A[KS]IA[0-9A-Z]|AIza|ya29\.|xox[abeprs]-|glpat-|npm_\w|pypi-AgE|SG\.\w|gsk_\w"
    r"|dop_v1_|shp(?:at|ss|ca|pa)_|eyJ\w|AccountKey=|://[^\s/:@]+:[^\s/:@]+@|PRIVATE KEY"
)
"""In RE2's syntax: a text without them holds no secret."""

# Begins with its rarest character, which is found fast; the part before it is looked up from there.
AT = re.compile(r"@(?<=[A-Za-z0-9_%+-]@)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,10}(?![A-Za-z0-9])")
LOCAL = re.compile(r"[A-Za-z0-9_.%+-]{1,64}\Z")
LOGIN = re.compile(r"://[^\s/@]*\Z")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
# Groups as they are printed on cards, or none at all.
CARD = re.compile(r"(?<![\w.-])(?:[3-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5})(?![\w-]|\.\d)")
PHONE = re.compile(
    r"(?<![\w+])\+[1-9]\d{0,2}(?:[ .()/-]{0,3}\d){6,13}(?!\d)|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])",
)
NATIONAL = "US"
"""Where a number without a country's prefix is looked up: only its way of writing them is told from other figures."""

PERSONAL_SIGNS = (
    r"[\w%+-]@\w|\+[1-9][\d ().\-/]{6}|\d{3}[\-.]\d{3}[\-.]\d{4}|\(\d{3}\) ?\d{3}|\d{10}|\d{4}[ \-]\d{4}[ \-]\d|\d{4}[ \-]\d{6}[ \-]\d"
    r"|[A-Z]{2}\d\d ?[A-Z0-9]{4} ?[A-Z0-9]{4}"
)
"""In RE2's syntax: a text without them holds no personal data."""


@dataclass(frozen=True)
class Found:
    kind: Kind
    begin: int
    end: int


def secrets(text: str) -> Iterator[Found]:
    for match in SECRETS.finditer(text):
        yield Found("secret", match.start(), match.end())


def personal(text: str) -> Iterator[Found]:
    """E-mail addresses, bank accounts, cards and phones; where two overlap, the first of these."""
    taken: list[Found] = []
    for found in (*_emails(text), *_ibans(text), *_cards(text), *_phones(text)):
        if all(found.end <= other.begin or found.begin >= other.end for other in taken):
            taken.append(found)
    yield from sorted(taken, key=lambda found: found.begin)


def masked(text: str, found: Found) -> str:
    """Enough to recognise it by, and not enough to use it."""
    said = text[found.begin : found.end]
    if found.kind == "e-mail":
        name, _, domain = said.partition("@")
        return f"{name[0]}…@{domain[0]}….{domain.rpartition('.')[2]}"
    if found.kind == "secret":
        return f"{said[:4]}…"
    if found.kind == "iban":
        return f"{said[:2]}… {said[-2:]}"
    return f"… {said[-2:]}"


def _emails(text: str) -> Iterator[Found]:
    for match in AT.finditer(text):
        before = text[max(0, match.start() - 100) : match.start()]
        name = LOCAL.search(before)
        # https://user:password@host and git@host are no one's addresses.
        if name and not LOGIN.search(before) and name[0] != "git":
            yield Found("e-mail", match.start() - len(name[0]), match.end())


def _ibans(text: str) -> Iterator[Found]:
    for match in IBAN.finditer(text):
        said = match[0].replace(" ", "")
        # ISO 7064, MOD 97-10, as ISO 13616 has it: the first four to the end, letters as 10 to 35.
        if 15 <= len(said) <= 34 and int("".join(str(int(letter, 36)) for letter in said[4:] + said[:4])) % 97 == 1:
            yield Found("iban", match.start(), match.end())


def _cards(text: str) -> Iterator[Found]:
    for match in CARD.finditer(text):
        digits = [int(digit) for digit in match[0] if digit.isdigit()]
        # The sum of Luhn (ISO/IEC 7812-1): every second digit from the right counts twice.
        doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
        if len(set(digits)) > 1 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0:
            yield Found("card", match.start(), match.end())


def _phones(text: str) -> Iterator[Found]:
    for match in PHONE.finditer(text):
        try:
            number = phonenumbers.parse(match[0], None if match[0][0] == "+" else NATIONAL)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            yield Found("phone", match.start(), match.end())
