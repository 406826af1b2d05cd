"""Index servers for tests, on loopback: a real Chroma server, and stand-ins of Pinecone, Qdrant and Weaviate that check each request.

A stand-in answers as the documented API does, keeps what it is sent, and refuses what the real one would refuse, so that a wrong
request fails a test. `faults` are answers that it gives next instead: (status, headers).
"""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.serve import free_port

RUN = "import sys, chromadb_rust_bindings as chroma; chroma.cli(['chroma', 'run', *sys.argv[1:]])"  # what the `chroma` command does


class ChromaServer:
    """`chroma run` in a process of its own, started without Chroma's Python package, which takes seconds to import."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["--path", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
        )
        for _ in range(600):
            assert self.process.poll() is None, "the Chroma server ended at its start"
            try:
                urllib.request.urlopen(self.url + "/api/v2/heartbeat", timeout=5).read()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the Chroma server did not answer within 30 s")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


class Refused(Exception):
    """What a stand-in raises to answer with an error: status and body."""


class StandIn:
    """An HTTP server on loopback; `answer(method, path, body, headers)` returns JSON or raises Refused. `requests` keeps what came."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.problems: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"standin": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method: str, path: str, body: Any, headers: Any, size: int) -> Any:
        raise NotImplementedError

    def fault_now(self, method: str, path: str) -> bool:
        """Whether a fault that waits may hit this request."""
        return bool(self.faults)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: StandIn

    def handle_any(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        self.standin.requests.append((self.command, self.path, body))
        if self.standin.fault_now(self.command, self.path):
            status, headers = self.standin.faults.pop(0)
            self.reply(status, {"error": {"code": "UNAVAILABLE", "message": "try later"}, "status": status}, headers)
            return
        try:
            self.reply(200, self.standin.answer(self.command, self.path, body, self.headers, len(raw)), {})
        except Refused as refused:
            status, answer = refused.args
            self.standin.problems.append(f"{self.command} {self.path}: {status} {answer}")
            self.reply(status, answer, {})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def reply(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        raw = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keeps quiet."""
