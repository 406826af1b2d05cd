"""No socket leaves loopback: not in this process, not in a notebook's kernel, not when a library hides the attempt."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools.execute import execute

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "192.0.2.1"  # TEST-NET-1, an address that belongs to nobody
ATTEMPT = f"""
import socket
try:
    socket.create_connection(("{OUTSIDE}", 80), timeout=2)
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.reaches_out
def test_connection_beyond_loopback_is_refused():
    with pytest.raises(OSError, match="stay on this machine"):
        socket.create_connection((OUTSIDE, 80), timeout=2)


@pytest.mark.reaches_out
def test_name_beyond_loopback_is_not_even_looked_up():
    with pytest.raises(OSError, match="stay on this machine"):
        socket.getaddrinfo("example.org", 443)


@pytest.mark.reaches_out
def test_datagram_beyond_loopback_is_refused():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(OSError, match="stay on this machine"):
        sender.sendto(b"hello", (OUTSIDE, 53))


def test_loopback_works():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5) as client:
        connection, _ = server.accept()
        client.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        connection.close()


def notebook_with(source: str, path: Path) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


@pytest.mark.reaches_out
def test_notebook_kernel_cannot_reach_out(tmp_path):
    execution = execute(notebook_with(ATTEMPT, tmp_path / "reach.ipynb"), {})
    assert execution.failure is None
    assert execution.notebook.cells[0].outputs[0].text.strip() == "LeavesLoopback"


def test_swallowed_attempt_still_fails_the_test_that_made_it(tmp_path):
    source = "def test_quiet():\n" + "".join(f"    {line}\n" for line in ATTEMPT.strip().splitlines())
    (tmp_path / "test_quiet.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_quiet.py")]
    environment_log = tmp_path / "attempts.log"
    environment_log.touch()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=child_environment(environment_log), timeout=120)
    assert result.returncode == 1
    assert "tried to leave this machine" in result.stdout and OUTSIDE in result.stdout


def child_environment(log: Path) -> dict[str, str]:
    """The environment of a child whose attempts must not count against the test that starts it."""
    return {**os.environ, "COURSE_OFFLINE_LOG": str(log)}


def without_network() -> list[str] | None:
    """Returns the command that starts a program with no network at all, native code included, or None where the system has none."""
    unshare = shutil.which("unshare")
    command = [unshare, "--map-root-user", "--net"] if unshare else []
    works = unshare and subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0
    return command if works else None


@pytest.mark.slow
def test_embedder_works_on_a_machine_without_any_network():
    if (isolated := without_network()) is None:
        pytest.skip("this system cannot start a process without a network")
    code = "from utils.models import load_embedder; print(len(load_embedder().embed_query('What is NF4?')))"
    result = subprocess.run([*isolated, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "384"
