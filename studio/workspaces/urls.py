from django.urls import include, path

from studio.workspaces import account_views, audit_views, key_views, membership_views, people_views, views

settings = [
    path("", key_views.settings, name="index"),
    path("keys/", key_views.key_new, name="key_new"),
    path("keys/<uuid:pk>/limits/", key_views.key_limits, name="key_limits"),
    path("keys/<uuid:pk>/revoke/", key_views.key_revoke, name="key_revoke"),
    path("second-factor/", account_views.second_factor, name="second_factor"),
    path("audit/", audit_views.audit, name="audit"),
    path("audit/file/", audit_views.file, name="audit_export"),
    path("roles/", people_views.roles, name="roles"),
]
people = [
    path("", people_views.people, name="list"),
    path("<int:pk>/change/", people_views.change, name="change"),
    path("<int:pk>/remove/", people_views.remove, name="remove"),
    path("invitations/", people_views.invite, name="invite"),
    path("invitations/<uuid:pk>/revoke/", people_views.invite_revoke, name="invite_revoke"),
]
workspaces = [
    path("switch/", membership_views.switch, name="switch"),
    path("new/", membership_views.workspace_new, name="new"),
    path("none/", membership_views.nowhere, name="nowhere"),
]
urlpatterns = [
    path("settings/people/", include((people, "people"))),
    path("settings/", include((settings, "settings"))),
    path("workspaces/", include((workspaces, "workspaces"))),
    path("invite/<str:token>/", membership_views.invitation, name="invitation"),
    path("design/", include(([path("", views.design, name="index")], "design"))),
]
