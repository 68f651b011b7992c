"""File systems of a few kilobytes, and read-only ones."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PAGE = 4096


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """Return a function that mounts something at a folder, until the end of the test."""
    folders: list[Path] = []

    def mount(folder: Path, *arguments: str | Path) -> None:
        _mount(*arguments, folder)
        folders.append(folder)

    yield mount
    for folder in reversed(folders):
        # what is still open, such as a mapped file, is released later
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small_disk(mounted: Callable[..., None]) -> Callable[[Path, int], Callable[[], None]]:
    """Return a function that moves a folder to a disk with little room.

    It takes the folder and the free kilobytes, and returns a function that makes room.
    """

    def move(folder: Path, free_kilobytes: int) -> Callable[[], None]:
        folder.mkdir(parents=True, exist_ok=True)
        old = folder.rename(folder.with_name(f"{folder.name}.old"))
        folder.mkdir()
        files = [path for path in old.rglob("*") if path.is_file()]
        used = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files) // 1024
        mounted(folder, "-t", "tmpfs", "-o", f"size={used + free_kilobytes}k", "tmpfs")
        subprocess.run(["cp", "-a", f"{old}/.", folder], check=True)
        subprocess.run(["rm", "-r", old], check=True)
        return lambda: _mount("-o", "remount,size=100m", folder)

    return move


@pytest.fixture
def read_only(mounted: Callable[..., None]) -> Callable[[Path], None]:
    """Return a function that makes a folder read-only, for root too."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mounted(folder, "--bind", folder)
        _mount("-o", "remount,bind,ro", folder)

    return make
