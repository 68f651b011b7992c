"""Prepares MLflow's store: ``python make_store.py PATH``; see ``test_tracking_store.py``."""

import sys
from pathlib import Path

from ja_instruct.hooks.tracking_store import prepare_store

if __name__ == "__main__":
    print("problem:", prepare_store(Path(sys.argv[1])))
