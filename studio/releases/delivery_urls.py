"""Deliveries for members below /deliveries/, and the link that opens one for whoever has it below /d/."""

from django.urls import include, path

from studio.releases import delivery_views as views

deliveries = [
    path("", views.deliveries, name="list"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.delivery, name="detail"),
    path("<uuid:pk>/revoke/", views.revoke, name="revoke"),
    path("<uuid:pk>/file/", views.download, name="download"),
]
urlpatterns = [
    path("deliveries/", include((deliveries, "deliveries"))),
    path("d/<str:token>/", views.link, name="delivery"),
    path("d/<str:token>/file/", views.link_file, name="delivery_file"),
]
