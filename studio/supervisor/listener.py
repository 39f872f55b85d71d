"""The web server's listening socket, opened before anything starts, so that a busy port is told at once.

The supervisor keeps it open: while the web server is restarted, browsers wait instead of being refused.
"""

import errno
import socket

from studio.errors import UserError


def listen(*, host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError for a busy, forbidden or unknown address."""
    if not 0 <= port <= 65535:
        raise UserError(f"There is no port {port}. Take --port with a number below 65536.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"{host} is no address of this machine. Take --host 127.0.0.1, or 0.0.0.0 for all of its addresses.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it; asyncio sets it only on sockets that it opened itself.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise UserError(why_not(error, host=host, port=port)) from error
    return listener


def why_not(error: OSError, *, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use already. Stop what uses it, or choose another: python3 manage.py up --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"Port {port} needs administrator rights. Choose one above 1023: python3 manage.py up --port 8000"
    return f"{host}:{port} cannot be listened on: {error.strerror}. Choose another --host or --port."


def base_url(listener: socket.socket) -> str:
    """What a browser on this machine opens, without a slash at the end."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
