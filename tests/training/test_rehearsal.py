"""The rehearsal is a whole plugin: it passes what every plugin must."""

import pytest

from studio.training.testing import check_plugin
from training_plugins.rehearsal import Rehearsal


def test_the_rehearsal_passes_the_conformance_suite():
    check_plugin(Rehearsal, config={"seconds_per_step": 0.01})


def test_a_plugin_that_nobody_installed_is_told_so():
    class Stray(Rehearsal):
        name = "stray"

    with pytest.raises(AssertionError, match="does not find stray"):
        check_plugin(Stray)
