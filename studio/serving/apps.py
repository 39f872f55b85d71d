from django.apps import AppConfig


class ServingConfig(AppConfig):
    name = "studio.serving"

    def ready(self) -> None:
        from studio.orders.kinds import SWEEPS
        from studio.serving import keeping

        SWEEPS.append(keeping.expire)
