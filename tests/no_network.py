"""Block connections to other computers, in tests and in the processes that they start."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class NetworkAccessError(RuntimeError):
    """A test tried to reach another computer. Not an ``OSError``, which a retry would swallow."""


def is_local(host: str | bytes | None) -> bool:
    """Return whether ``host`` is ``localhost`` or a loopback address."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def block(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Refuse every connection and look-up that is not local from now on.

    Args:
        replace: Replaces the functions of ``socket``, such as pytest's ``monkeypatch.setattr``.
    """

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX:
                check(address[0])
            return function(self, address)

        return guarded

    def check(host: str | bytes | None) -> None:
        if not is_local(host):
            raise NetworkAccessError(f"a test tried to reach {host!r}")

    getaddrinfo = socket.getaddrinfo

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return getaddrinfo(host, *args, **kwargs)

    replace(socket.socket, "connect", guard(socket.socket.connect))
    replace(socket.socket, "connect_ex", guard(socket.socket.connect_ex))
    replace(socket, "getaddrinfo", guarded_getaddrinfo)
