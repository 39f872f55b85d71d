"""The web process: pages and API by Django, live events by Channels. No socket answers to a foreign origin."""

import gc
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings")

from django.core.asgi import get_asgi_application
from django.urls import get_resolver

http = get_asgi_application()

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import SessionMiddlewareStack

from studio.sockets import websocket_urlpatterns
from studio.workspaces.intake import Intake

application = ProtocolTypeRouter(
    {"http": Intake(http), "websocket": AllowedHostsOriginValidator(SessionMiddlewareStack(URLRouter(websocket_urlpatterns)))}
)

# What is loaded stays as long as the process runs. Looking through it for garbage would hold up a request for a quarter of a second.
_ = get_resolver().url_patterns
gc.collect()
gc.freeze()


class Warming:
    """Leaves out of the next looks for garbage what pages load at their first visits: templates above all, 60 ms of each tenth request.

    After so many full collections as `left` that is over: what requests under way hold in circles is left out along with it, each time.
    """

    def __init__(self, left: int = 40) -> None:
        self.left = left

    def __call__(self, phase: str, about: dict[str, int]) -> None:
        if phase != "stop" or about["generation"] != 2:
            return
        gc.freeze()
        self.left -= 1
        if not self.left:
            gc.callbacks.remove(self)


gc.callbacks.append(Warming())
