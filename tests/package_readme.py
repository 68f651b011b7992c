"""The examples in the README.md of a package, and a Kedro project that is made of them."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYPROJECT = """
[tool.kedro]
package_name = "my_project"
project_name = "my-project"
kedro_init_version = "1.7.0"
source_dir = "src"
"""


class Examples:
    """The code blocks in the README.md of a package."""

    def __init__(self, package):
        readme = Path(package.__file__).with_name("README.md").read_text("utf-8")
        self._blocks = BLOCK.findall(readme)

    def all(self, language, *, containing=""):
        return [text for name, text in self._blocks if name == language and containing in text]

    def one(self, language, *, containing=""):
        (text,) = self.all(language, containing=containing)
        return text
