from django.urls import include, path

from studio.comparisons import retraining_views as views

retraining = [
    path("", views.retrainings, name="list"),
    path("new/", views.new, name="new"),
    path("new/outlook/", views.outlook, name="outlook"),
    path("<uuid:pk>/", views.detail, name="detail"),
    path("<uuid:pk>/matrix.csv", views.table, name="table"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
    path("<uuid:pk>/again/", views.again, name="again"),
    path("<uuid:pk>/promote/", views.promote, name="promote"),
]
urlpatterns = [path("retraining/", include((retraining, "retraining")))]
