from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "studio.orders"

    def ready(self) -> None:
        from studio.orders import planning, storedays
        from studio.orders.kinds import SWEEPS

        SWEEPS += [storedays.write_down, planning.look_at_tables]
