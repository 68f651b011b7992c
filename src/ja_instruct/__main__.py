"""``python -m ja_instruct``: ``status`` lists the outputs; anything else is for ``kedro run``."""

import sys
from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project

from kedro_freshness.status import status


def main() -> None:
    """Run the command that the first argument names."""
    package = Path(__file__).parent.name
    configure_project(package)
    if sys.argv[1:2] == ["status"]:
        status(sys.argv[2:], prog_name="python -m ja_instruct status")
    find_run_command(package)(sys.argv[1:])


if __name__ == "__main__":
    main()
