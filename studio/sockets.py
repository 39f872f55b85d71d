"""Every websocket route. One that is not in the policy table fails the build."""

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path, re_path

from studio.orders.live import OrderConsumer
from studio.runs.live import RunConsumer


class Nowhere(AsyncWebsocketConsumer):
    """An unknown address is closed, not an error in the log."""

    async def connect(self) -> None:
        await self.close(code=4404)


websocket_urlpatterns = [
    path("ws/runs/<uuid:pk>/", RunConsumer.as_asgi()),
    path("ws/orders/<uuid:pk>/", OrderConsumer.as_asgi()),
    re_path(r"", Nowhere.as_asgi()),
]
