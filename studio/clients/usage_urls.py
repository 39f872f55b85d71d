from django.urls import path

from studio.clients.pages import rates, usage

app_name = "usage"
urlpatterns = [
    path("usage/", usage.month, name="month"),
    path("usage/invoice.csv", usage.csv, name="invoice"),
    path("settings/usage/", rates.page, name="rates"),
    path("settings/usage/rates/", rates.rate_new, name="rate_new"),
    path("settings/usage/rates/<uuid:pk>/remove/", rates.rate_remove, name="rate_remove"),
]
