from django.apps import AppConfig


class ClientsConfig(AppConfig):
    """What is told of a client as a whole, so it looks at every other app and none looks at it."""

    name = "studio.clients"

    def ready(self) -> None:
        from studio.clients import needs
        from studio.clients.erasing import finish_all
        from studio.orders.kinds import SWEEPS
        from studio.workspaces.needs import NEEDS

        SWEEPS.append(finish_all)
        NEEDS.extend((needs.approvals, needs.limits, needs.disk, needs.keys))
