"""An LLM behind an OpenAI-compatible URL on this machine: starts `transformers serve`, waits until it is healthy, and stops it.

`python -m tools.serve` serves the course's default model until Ctrl-C. Notebook 11 and the load test start and stop it from code. The
server listens on loopback only, stays offline, and writes its log to a file, whose end is shown when it does not come up. Knows the
command line of transformers 5; knows nothing of prompts. On a GPU, vLLM takes its place: same URL, same clients.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from utils.runtime import BUILD, OFFLINE, choose_dtype, detect

HOST = "127.0.0.1"
LOG = BUILD / "serving" / "server.log"
# The server scans the Hub's cache to list models and fails where there is none; and its command line would ask PyPI for news.
QUIET = {"HF_HUB_CACHE": str(BUILD / "serving" / "hub"), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
# A paged KV cache of 64 pages of 256 tokens; without bounds, transformers takes 60 % of the free memory of a machine without a GPU.
# 128 tokens in a pass: its attention is computed between all that is in the batch and masked afterwards, so larger passes waste more.
CONTINUOUS = ("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "128")


class ServerError(RuntimeError):
    """The server did not come up, or went away; the message ends with its log."""


@dataclass
class Server:
    """A running server. `model` is the name that requests carry; as a context manager it stops at the end of the block."""

    process: subprocess.Popen[bytes]
    port: int
    model: str
    log: Path
    start_seconds: float = 0.0

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call the server's address."""
        return f"http://{HOST}:{self.port}/v1"

    def is_healthy(self) -> bool:
        """Returns whether the server answers its health check with 200."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait(self, seconds: float) -> Server:
        """Returns the server once it is healthy; raises ServerError when it ends before, or takes longer."""
        start = time.perf_counter()
        while not self.is_healthy():
            code, waited = self.process.poll(), time.perf_counter() - start
            if code is not None or waited > seconds:
                self.stop()
                what = f"ended with exit code {code}" if code is not None else f"was not healthy after {seconds:.0f} s"
                raise ServerError(f"The server {what}. The end of its log, {self.log.name}:\n\n{self.last_lines()}")
            time.sleep(0.1)
        self.start_seconds = time.perf_counter() - start
        return self

    def last_lines(self, count: int = 25) -> str:
        """Returns the end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """Ends the process: asked first, killed after ten seconds. Does nothing when it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        atexit.unregister(self.stop)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def free_port() -> int:
    """Returns a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve_command(folder: Path, port: int, options: tuple[str, ...] = ()) -> list[str]:
    """Returns the command line; it runs in the folder's parent, so that the folder's name is the model's name."""
    dtype = str(choose_dtype(detect().device)[0]).removeprefix("torch.")
    base = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder.name]
    return [*base, "--host", HOST, "--port", str(port), "--dtype", dtype, *options]


def start_server(folder: Path, options: tuple[str, ...] = (), threads: int | None = None, log: Path = LOG, timeout: float = 120) -> Server:
    """Returns a healthy server for the model in `folder`; it also stops when this Python ends.

    options: more of `transformers serve`, such as CONTINUOUS. threads: cores it may compute with; None leaves it all.

    Raises:
        ServerError: with the end of the log.
    """
    Path(QUIET["HF_HUB_CACHE"]).mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {**os.environ, **OFFLINE, **QUIET} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with log.open("wb") as stream:
        process = subprocess.Popen(
            serve_command(folder, port, options), cwd=folder.parent, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    server = Server(process, port, folder.name, log)
    atexit.register(server.stop)
    try:
        return server.wait(timeout)
    except BaseException:  # an interrupt as well must not leave it running
        server.stop()
        raise


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.serve", description="Serve a model behind an OpenAI-compatible URL.")
    parser.add_argument("model", nargs="?", help="catalog key or folder; the profile's default when none is given")
    parser.add_argument("--continuous-batching", action="store_true", help="batch requests token by token")
    chosen = parser.parse_args()
    from utils import checkpoints

    folder = Path(checkpoints.fetch(checkpoints.find(chosen.model, "llm")))
    with start_server(folder, CONTINUOUS if chosen.continuous_batching else ()) as server:
        print(f"{server.model} at {server.base_url}; Ctrl-C ends it")
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return -signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
