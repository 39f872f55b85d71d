"""What a client's own people see."""

from django.urls import include, path

from studio.releases import shared_views as views

shared = [path("<uuid:pk>/", views.release, name="release"), path("<uuid:pk>/sign-off/", views.sign_off, name="sign_off")]
urlpatterns = [path("shared/", include((shared, "shared")))]
