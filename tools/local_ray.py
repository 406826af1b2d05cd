"""Ray on this machine and nowhere else: loopback only, no dashboard, no statistics, no question to the network, nothing left behind.

Ray is meant for clusters, so its defaults listen on the machine's outward address and ask which cloud this is. Written for Ray 2.60.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OBJECT_STORE = 100 * 2**20  # bytes; texts are small
AT_HOME = {  # they count only before the first import of Ray
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite the name: the node's address is 127.0.0.1; `_node_ip_address` would not do it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """Ray on loopback with `workers` cores, swept away at the end. Raises RuntimeError when it runs already or does not start so."""
    os.environ |= AT_HOME
    import ray

    if ray.is_initialized():
        raise RuntimeError("Ray runs in this process already; call ray.shutdown() first.")
    session = tempfile.mkdtemp(prefix="ray-")
    try:
        _start_ray(session, workers)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)


def _start_ray(session: str, workers: int) -> None:
    """Starts Ray with its files in `session`.

    Even with its statistics off, Ray asks the network in which cloud it runs, unless its home folder holds a cluster's configuration. So
    the session gets an empty one and is Ray's home; workers get the real home back (`BlockEmbedder`).
    """
    import ray

    Path(session, "ray_bootstrap_config.yaml").write_text("{}", encoding="utf-8")
    home = os.environ.get("HOME")
    os.environ["HOME"] = session
    try:
        for last in (False, True):  # Ray gives its own processes half a minute to start, too little on a busy machine: once more
            try:
                ray.init(
                    num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE, log_to_driver=False,
                    logging_level=logging.ERROR, _temp_dir=session,
                )  # fmt: skip
                break
            except Exception as error:  # Ray raises bare exceptions
                ray.shutdown()
                if last:
                    hint = "Run again when the machine is less busy, or pass with_ray=False."
                    raise RuntimeError(f"Ray did not start ({error}). {hint}") from error
    finally:
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)
    if (address := ray.util.get_node_ip_address()) != "127.0.0.1":
        raise RuntimeError(f"Ray would listen on {address}, not on loopback only: it was imported before. Start a fresh process.")
