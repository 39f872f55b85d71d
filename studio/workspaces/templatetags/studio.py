"""Numbers, sizes and times as people read them, in every template."""

import inspect
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any

from django import template
from django.template.loader import render_to_string
from django.utils.html import format_html

from studio.training.form import as_text, plain_float
from studio.workspaces.signing_in import passkeys_work

register = template.Library()
TENTH = Decimal("0.1")


@register.filter
def filesize(value: Any) -> str:
    """98 MB, 1.2 GB: powers of 1000, as disks are sold."""
    size = float(value or 0)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


@register.filter
def count(value: Any) -> str:
    """135 M, 4.9 M, 12,345: short above a hundred thousand."""
    number = float(value or 0)
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.0f} {unit}" if number >= limit * 100 else f"{number / limit:.1f} {unit}"
    return f"{number:,.0f}"


@register.filter
def duration(value: Any) -> str:
    """42 s, 11 min, 2 h 5 min; takes seconds or a timedelta."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value or 0)
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


@register.filter
def seconds(value: Any) -> str:
    """340 ms, 2.4 s, 75 s: how long an answer took; a dash for none."""
    if value is None or value == "":
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


@register.filter
def span(value: Any) -> str:
    """A training.Span of seconds: 36 s – 2 min, or about 2 min where both ends read alike."""
    low, high = duration(value.low), duration(value.high)
    return f"about {low}" if low == high else f"{low} – {high}"


@register.filter
def number(value: Any) -> str:
    """1.48, 0.991, 0.0002, 2e-06: enough digits to compare, no more; the scripts' `figure` does the same."""
    if value is None or value == "":
        return "–"
    amount = float(value)
    size = abs(amount)
    for limit, digits in ((100, 0), (10, 1), (1, 2), (0.01, 3)):
        if size >= limit:
            return f"{amount:,.{digits}f}"
    return plain_float(float(f"{amount:.3g}")) if size >= 1e-5 or not size else f"{amount:.2g}"


@register.filter
def typed(value: Any) -> str:
    """A setting's value as a person would type it."""
    return as_text(value)


@register.filter
def money(value: Any, currency: str = "") -> str:
    """1,204.50 EUR"""
    return f"{value or 0:,.2f} {currency}".rstrip()


@register.filter
@lru_cache(100)
def state(status: str) -> str:
    """The picture and the word of a status, which is the same in many rows of a table."""
    return render_to_string("components/status.html", {"status": status})


@register.filter
def tenths(value: Any) -> str:
    """1,204.5, with halves rounded up; in a fraction of the time of `floatformat`."""
    return f"{Decimal(value or 0).quantize(TENTH, ROUND_HALF_UP):,}"


@register.filter
def cost(seconds: Any, tariff: Any) -> str:
    """A training.Span of seconds at a runs.costs.Tariff: 1.20 – 2.40 EUR; nothing where there is none."""
    return tariff.words(seconds) if tariff else ""


@register.filter
def percent(value: Any) -> str:
    """0.953 as 95 %."""
    share = float(value or 0) * 100
    return f"{share:.0f} %" if share >= 1 or share == 0 else f"{share:.1f} %"


@register.filter
def ago(value: datetime | None) -> str:
    """A time whose script shows how long ago it was; the absolute time stands in it."""
    if value is None:
        return "–"
    return format_html(
        '<time datetime="{}" data-relative title="{}">{}</time>', value.isoformat(), f"{value:%d %b %Y %H:%M} UTC", f"{value:%d %b %H:%M}"
    )


@register.filter
def summary(thing: Any) -> str:
    """The first paragraph of a plugin's docstring, as one line."""
    return " ".join((inspect.getdoc(type(thing)) or "").split("\n\n")[0].split())


@register.filter
def item(mapping: Any, key: Any) -> Any:
    """`mapping[key]`, or nothing."""
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.simple_tag(takes_context=True)
def passkeys_possible(context: Any) -> bool:
    """True where a browser would use a passkey at this address."""
    return passkeys_work(context["request"])


@register.simple_tag(takes_context=True)
def may(context: Any, action: str) -> bool:
    """True where the one who looks may do it: `{% may "run.create" as can_train %}`."""
    member = getattr(context.get("request"), "member", None)
    return bool(member and member.may(action))
