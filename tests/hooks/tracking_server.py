"""An MLflow server as far as these tests call it, which can stop answering."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TrackingServer(ThreadingHTTPServer):
    """A server on a free port of this computer.

    Attributes:
        received: The path and the body of each request that was answered.
        credentials: The values of their header ``Authorization``.
        answers: Set while the server answers.
        status: The status of every answer.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, artifact_uri: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.artifact_uri = artifact_uri
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.credentials: set[str | None] = set()
        self.answers = threading.Event()
        self.answers.set()
        self.status = 200
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer_to(self, path: str) -> dict[str, Any]:
        """Return what an endpoint answers; there is one run."""
        if self.status != 200:
            return {"error_code": "PERMISSION_DENIED", "message": "no user of that name"}
        if not path.startswith("runs/"):
            return {"experiment_id": "0"} if path == "experiments/create" else {}
        info = {
            "run_id": "1f" * 16,
            "experiment_id": "0",
            "status": "RUNNING",
            "start_time": 1,
            "lifecycle_stage": "active",
            "artifact_uri": self.artifact_uri,
        }
        return {"run": {"info": info, "data": {}}, "run_info": info}


class _Handler(BaseHTTPRequestHandler):
    server: TrackingServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.answers.wait()
        self.server.credentials.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0].partition("/mlflow/")[2]
        self.server.received.append((path, json.loads(body or "{}")))
        answer = json.dumps(self.server.answer_to(path)).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client has not waited
            self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
