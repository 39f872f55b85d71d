from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "studio.orders"

    def ready(self) -> None:
        from studio.orders import storedays
        from studio.orders.kinds import SWEEPS

        SWEEPS.append(storedays.write_down)
