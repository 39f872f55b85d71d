from django.apps import AppConfig


class ServingConfig(AppConfig):
    name = "studio.serving"

    def ready(self) -> None:
        from studio.orders.kinds import SWEEPS, register
        from studio.serving import keeping, reach, rollup, trial_kind
        from studio.workspaces.keys import DEPLOYMENTS

        register(trial_kind.TrialKind())
        DEPLOYMENTS.append(reach.deployments_for)
        SWEEPS.append(keeping.expire)
        SWEEPS.append(rollup.roll_up)
