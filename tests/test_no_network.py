import socket

import pytest
from no_network import NetworkAccessError, is_local

ELSEWHERE = ("192.0.2.1", 443)  # reserved for documentation, RFC 5737


def test_other_computers_are_blocked():
    with pytest.raises(NetworkAccessError), socket.socket() as client:
        client.connect(ELSEWHERE)
    with pytest.raises(NetworkAccessError):
        socket.create_connection(("huggingface.co", 443))


def test_this_computer_is_not_blocked():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("x.y", False)],
)
def test_is_local(host, local):
    assert is_local(host) is local


def test_processes_that_tests_start_are_blocked(run_python):
    code = f"import socket; socket.create_connection({ELSEWHERE}, timeout=1)"
    assert "NetworkAccessError" in run_python("-c", code, status=1).stderr
