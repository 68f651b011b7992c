"""Temporary files of a process that was killed while it wrote a record."""

import os
import subprocess
import sys

from kedro_freshness.files import discard_unfinished
from kedro_freshness.fingerprints import FOLDER


def test_are_removed_unless_their_process_is_alive(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / FOLDER
    folder.mkdir()
    names = [f".model.json.{pid}.0a1b2c3d.new" for pid in (ended.pid, os.getppid())]
    for name in names:
        (folder / name).write_text("{")
    discard_unfinished(folder)
    assert [path.name for path in folder.iterdir()] == names[1:]
