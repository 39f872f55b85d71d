"""Imports a package that nobody has."""

import adapter_studio_package_that_nobody_has  # noqa: F401
