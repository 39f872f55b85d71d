from django.urls import include, path

from studio.workspaces import views

clients = [
    path("", views.clients, name="list"),
    path("new/", views.client_new, name="new"),
    path("<uuid:pk>/", views.client, name="detail"),
]
settings = [
    path("", views.settings, name="index"),
    path("keys/", views.key_new, name="key_new"),
    path("keys/<uuid:pk>/revoke/", views.key_revoke, name="key_revoke"),
    path("audit/", views.audit, name="audit"),
]
urlpatterns = [
    path("clients/", include((clients, "clients"))),
    path("settings/", include((settings, "settings"))),
    path("design/", include(([path("", views.design, name="index")], "design"))),
]
