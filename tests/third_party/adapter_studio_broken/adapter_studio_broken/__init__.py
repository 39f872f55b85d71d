"""Says that it is a plugin and is none."""


class NoPlugin:
    name = "no_plugin"
