"""What CONTRIBUTING.md shows is what the tests install and run."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ECHO = ROOT / "tests" / "third_party" / "adapter_studio_echo"


def test_the_example_in_the_text_is_the_package_that_the_tests_run():
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a training backend")[1]
    shown = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)
    assert shown[0] == (ECHO / "adapter_studio_echo" / "__init__.py").read_text()
    assert shown[1] == (ECHO / "pyproject.toml").read_text()
