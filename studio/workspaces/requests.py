"""What a request says about itself."""

from ipaddress import ip_address

from django.http import HttpRequest


def address_of(request: HttpRequest) -> str | None:
    """Where a request comes from, as PostgreSQL takes it; a proxy may hand on whatever the caller wrote."""
    try:
        return str(ip_address(request.META.get("REMOTE_ADDR", "").partition("%")[0]))
    except ValueError:
        return None
