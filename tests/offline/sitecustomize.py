"""Keeps a Python process on loopback: any attempt to reach further is refused and written to a log, also when the caller swallows it.

conftest.py puts this folder on PYTHONPATH, so that every Python that a test starts (notebook kernels, command-line tools) is guarded
as well. It works by an audit hook, which sees every socket of the standard library whoever opens it; sockets of compiled extensions
are out of its sight, which is why the offline switches of those libraries are set too (utils.runtime).
"""

import ipaddress
import os
import socket
import sys
import traceback
from typing import Any

LOG = "COURSE_OFFLINE_LOG"  # names the log file; without it the guard stays off
OUTWARD = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
allowed = False  # a test marked `hub` switches this on while it runs


class LeavesLoopback(OSError):
    """Raised instead of connecting; an OSError, so that libraries behave as on a machine without a network."""


def stays(host: Any) -> bool:
    """Returns whether `host` is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if not name or name in {"localhost", "localhost.localdomain", socket.gethostname()}:
        return True
    try:
        address = ipaddress.ip_address(str(name).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def target(event: str, arguments: tuple[Any, ...]) -> Any:
    """Returns the host that an audit event is about; None where there is none, as for a Unix socket."""
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = arguments[1]
        return address[0] if isinstance(address, tuple) and address and isinstance(address[0], str | bytes) else None
    return arguments[0]


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuses what leaves loopback and notes who tried."""
    if event not in OUTWARD or allowed:
        return
    host = target(event, arguments)
    if stays(host):
        return
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack(limit=8)[:-1]]
    with open(os.environ[LOG], "a", encoding="utf-8") as log:
        log.write(f"{event} {host!r} in process {os.getpid()} from {' < '.join(reversed(frames))}\n")
    raise LeavesLoopback(f"{event} to {host!r}: tests stay on this machine")


if os.environ.get(LOG):
    sys.addaudithook(guard)
