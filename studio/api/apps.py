from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "studio.api"

    def ready(self) -> None:
        from studio.api.idempotency import forget
        from studio.clients.holdings import FORGET

        FORGET.append(forget)
