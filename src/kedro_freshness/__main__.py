"""``python -m kedro_freshness``: the command ``status``."""

from kedro_freshness.status import status

if __name__ == "__main__":
    status(prog_name="python -m kedro_freshness")
