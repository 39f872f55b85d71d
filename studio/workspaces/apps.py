from django.apps import AppConfig


class WorkspacesConfig(AppConfig):
    name = "studio.workspaces"

    def ready(self) -> None:
        from allauth.account.signals import password_changed, password_reset, password_set
        from allauth.account.signals import user_logged_in as let_in
        from allauth.mfa.models import Authenticator
        from allauth.mfa.signals import authentication_failed, authenticator_reset
        from allauth.socialaccount.signals import pre_social_login
        from django.contrib.auth.signals import user_logged_in, user_logged_out
        from django.db.models.signals import post_delete, post_save

        from studio.workspaces import accounts, choosing, sessions, signing_in, watching

        user_logged_in.connect(sessions.on_signed_in)
        user_logged_in.connect(choosing.on_signed_in)
        let_in.connect(accounts.on_signed_in)
        signing_in.password_refused.connect(accounts.on_password_refused)
        authentication_failed.connect(accounts.on_code_refused)
        password_changed.connect(accounts.on_password_changed)
        password_set.connect(accounts.on_password_changed)
        password_reset.connect(accounts.on_password_reset)
        authenticator_reset.connect(accounts.on_codes_made)
        pre_social_login.connect(accounts.on_company_sign_in)
        for signal in (user_logged_out, password_changed, password_reset):
            signal.connect(watching.on_sessions_ended)
        # allauth's own signals of these come after the commit; a record belongs to the change's transaction.
        post_save.connect(accounts.on_factor_saved, sender=Authenticator)
        post_delete.connect(accounts.on_factor_removed, sender=Authenticator)
