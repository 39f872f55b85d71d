from django.apps import AppConfig


class ServingConfig(AppConfig):
    name = "studio.serving"

    def ready(self) -> None:
        from studio.orders.kinds import SWEEPS
        from studio.serving import keeping, rollup

        SWEEPS.append(keeping.expire)
        SWEEPS.append(rollup.roll_up)
