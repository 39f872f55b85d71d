from django.apps import AppConfig


class ClientsConfig(AppConfig):
    """What is told of a client as a whole, so it looks at every other app and none looks at it."""

    name = "studio.clients"

    def ready(self) -> None:
        from studio.clients.erasing import finish_all
        from studio.orders.kinds import SWEEPS

        SWEEPS.append(finish_all)
