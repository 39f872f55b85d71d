from django.urls import path

from studio.serving import traffic_views as views

app_name = "traffic"
urlpatterns = [
    path("", views.everything, name="list"),
    path("traffic.csv", views.table, name="table"),
]
