"""What a request says about itself."""

from ipaddress import ip_address, ip_network

from django.http import HttpRequest


def address_of(request: HttpRequest) -> str | None:
    """Where a request comes from, as PostgreSQL takes it; a proxy may hand on whatever the caller wrote."""
    try:
        address = ip_address(request.META.get("REMOTE_ADDR", "").partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def caller(request: HttpRequest) -> str:
    """As `address_of`, for counting: of IPv6 the first half, since whoever has one address has all of that."""
    address = address_of(request) or ""
    return str(ip_network(f"{address}/64", strict=False)) if ":" in address else address
