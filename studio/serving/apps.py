from django.apps import AppConfig


class ServingConfig(AppConfig):
    name = "studio.serving"

    def ready(self) -> None:
        from studio.orders.kinds import SWEEPS, register
        from studio.serving import keeping, needs, reach, rollup, trial_kind
        from studio.workspaces.keys import DEPLOYMENTS
        from studio.workspaces.needs import NEEDS

        register(trial_kind.TrialKind())
        DEPLOYMENTS.append(reach.deployments_for)
        SWEEPS.append(keeping.expire)
        SWEEPS.append(rollup.roll_up)
        NEEDS.append(needs.failing)
