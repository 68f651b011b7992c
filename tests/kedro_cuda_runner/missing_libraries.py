"""The loader's error for NVIDIA's libraries on a machine without them."""

import ctypes

import pytest


def why_not_loaded(library: str) -> str:
    """Return why a library cannot be loaded; skip the test where it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return pytest.skip(f"this machine has {library}")
