"""Language detection by CLD2; run as a script, a worker process that does nothing else.

The worker is a module of its own because it imports only the standard library and pycld2, so that
it starts in 10 ms and takes 10 MB. It reads and writes frames: the length in eight bytes, then that
many bytes of ``marshal``.
"""

from __future__ import annotations

import marshal
import sys
from typing import IO, Any

import pycld2

#: None if the language is right, the codes and percentages detected, or CLD2's error message
Detection = list[tuple[str, int]] | str | None


def detect_all(texts: list[bytes], code: str, percent_min: int) -> list[Detection]:
    r"""Detect whether each text has at least ``percent_min`` % of the language ``code``.

    >>> texts = ["首都は東京です。", "It is Tokyo, the largest city there.", "東京\x01です。"]
    >>> detect_all([text.encode() for text in texts], "ja", 60)
    [None, [('en', 97)], 'input contains invalid UTF-8 around byte 6 (of 16)']
    """
    try:
        # map instead of a Python loop: between two calls, which take ten microseconds each, the
        # interpreter would wait for the other threads
        detected: list[Any] = list(map(pycld2.detect, texts))
    except pycld2.error:
        detected = [_detect(text) for text in texts]
    return [_judge(found, code, percent_min) for found in detected]


def _detect(text: bytes) -> Any:
    try:
        return pycld2.detect(text)
    except pycld2.error as error:
        return str(error)


def _judge(found: Any, code: str, percent_min: int) -> Detection:
    if isinstance(found, str):
        return found
    if any(name == code and percent >= percent_min for _, name, percent, _ in found[2]):
        return None
    return [(name, percent) for _, name, percent, _ in found[2] if percent]


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Write one value."""
    data = marshal.dumps(value)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """Read one value.

    Raises:
        EOFError: The stream is closed.
    """
    length = stream.read(8)
    if len(length) < 8:
        raise EOFError("the stream is closed")
    return marshal.loads(stream.read(int.from_bytes(length, "little")))  # noqa: S302


def main() -> None:
    """Answer frames of ``(texts, code, percent_min)`` until standard input is closed."""
    while True:
        try:
            question = read_frame(sys.stdin.buffer)
        except EOFError:
            return
        write_frame(sys.stdout.buffer, detect_all(*question))


if __name__ == "__main__":
    main()
