"""An index on disk: files with digests, named by a manifest, replaced atomically under a lock.

    folder/manifest.json           names one generation, its settings, its embedder, each file's size and SHA-256
    folder/generation-<hex>/       vectors.npy · documents.jsonl · index.faiss (or what the store adds)
    folder/.lock                   held by whoever builds; the operating system frees it when that process dies

A build writes a new generation beside the old one and then replaces `manifest.json` in one step, so a process killed at any
moment leaves the old index or the new one, never a mixture. Readers take no lock. Knows nothing of embedders or searching.
Nothing here is pickled: a file from a stranger can be wrong, and is then refused, but it cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 1
MANIFEST = "manifest.json"
GENERATION = "generation-"
PLAIN_NAME = re.compile(r"\w[\w.-]*")  # of a file or folder right here: no separators, no ".."
LOCK_TIMEOUT = 6 * 3600.0  # seconds; a waiting build gives up after this
logger = logging.getLogger(__name__)
T = TypeVar("T")


class IndexRefused(ValueError):
    """An index that must not be used; the message says why and what to do, `reason` only why."""

    reason = ""


def refuse(folder: Path, reason: str, remedy: str = "Build it again with build_index(passages, embedder, folder).") -> IndexRefused:
    """Return the error for the index in `folder`, with the one thing to do next."""
    error = IndexRefused(f"the index in {folder} is refused: {reason}. {remedy}")
    error.reason = reason
    return error


@contextmanager
def exclusive(folder: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the folder's lock, creating the folder; wait while another process or thread builds there.

    Raises IndexRefused when the folder holds something else than an index, TimeoutError after `timeout` seconds.
    """
    from filelock import FileLock, Timeout

    _check_is_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another build holds %s; waiting for it", folder)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise TimeoutError(f"another process has been building in {folder} for {timeout:.0f} s; wait for it or end it") from None
    try:
        yield
    finally:
        lock.release()


def _check_is_ours(folder: Path) -> None:
    """Raise IndexRefused unless `folder` is absent, empty, or holds an index (complete or begun)."""
    if folder.exists() and not folder.is_dir():
        raise IndexRefused(f"{folder} is a file; give a folder for the index")
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    others = [name for name in os.listdir(folder) if not name.startswith((GENERATION, MANIFEST, "."))]
    if others:
        raise IndexRefused(f"{folder} holds other files ({', '.join(sorted(others)[:3])}, …); give the index a folder of its own")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the index in `folder`; raises IndexRefused when it is missing, altered or of another format."""
    if not (folder / MANIFEST).is_file():
        raise refuse(folder, "there is no complete index here (no manifest.json)")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise refuse(folder, f"manifest.json cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != _digest_of(manifest):
        raise refuse(folder, "manifest.json was altered: its digest does not match")
    if manifest.get("format") != FORMAT:
        raise refuse(folder, f"it has format {manifest.get('format')}, this version reads format {FORMAT}")
    if problem := _shape_problem(manifest):
        raise refuse(folder, f"manifest.json was not written by this course: {problem}")
    return manifest


def _shape_problem(manifest: dict[str, Any]) -> str:
    """Return what a manifest lacks, or names outside its folder, whoever computed its digest; "" if nothing."""
    kinds = {"generation": str, "files": dict, "store": str, "settings": dict, "count": int, "embedder": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        return f"{', '.join(wrong)} missing or of another kind"
    outside = [name for name in (manifest["generation"], *manifest["files"]) if not PLAIN_NAME.fullmatch(name)]
    if outside:
        return f"{outside[0]!r} is no plain name"
    checked = all(isinstance(one, dict) and isinstance(one.get("bytes"), int) and "sha256" in one for one in manifest["files"].values())
    return "" if checked else "a file without size and SHA-256"


def _digest_of(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of the manifest's values."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def load_generation(folder: Path, load: Callable[[dict[str, Any], Path], T]) -> T:
    """Return `load(manifest, directory)` for the current generation, after checking the size and digest of its files.

    When a build swaps and sweeps the generation just being read, the new one is read instead.
    """
    while True:
        manifest = read_manifest(folder)
        directory = folder / manifest["generation"]
        try:
            _verify(folder, directory, manifest["files"])
            return load(manifest, directory)
        except FileNotFoundError as error:
            if read_manifest(folder)["generation"] == manifest["generation"]:
                raise refuse(folder, f"its file {Path(error.filename).name} is missing") from None
        except OSError as error:  # a folder in a file's place, or no right to read it
            raise refuse(folder, f"a file of it cannot be read ({error})") from error


def _verify(folder: Path, directory: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raise IndexRefused when a file is truncated, grown or altered."""
    for name, expected in files.items():
        size = (directory / name).stat().st_size
        if size != expected["bytes"]:
            raise refuse(folder, f"{name} has {size:,} bytes, the manifest says {expected['bytes']:,}: truncated or altered")
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
        for name, digest in zip(files, pool.map(lambda name: _sha256(directory / name), files)):
            if digest != files[name]["sha256"]:
                raise refuse(folder, f"{name} was altered: its SHA-256 is not the manifest's")


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_generation(folder: Path, manifest: dict[str, Any], write: Callable[[Path], None]) -> str:
    """Make what `write(directory)` puts into a fresh directory the folder's index, in one step; return its name. Call under `exclusive`."""
    generation = GENERATION + uuid.uuid4().hex[:12]
    directory = folder / generation
    directory.mkdir()
    try:
        write(directory)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(directory.iterdir())}
        for path in (*directory.iterdir(), directory):
            _flush(path)
        _replace_manifest(folder, {"format": FORMAT, "generation": generation, **manifest, "files": files})
    finally:
        _sweep(folder)
    return generation


def _replace_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Swap the manifest in: the one moment at which the new index becomes the index."""
    fresh = folder / (MANIFEST + ".new")
    fresh.unlink(missing_ok=True)  # it might be a link to a file elsewhere
    fresh.write_text(json.dumps({**manifest, "digest": _digest_of(manifest)}, indent=1, sort_keys=True), encoding="utf-8")
    _flush(fresh)
    os.replace(fresh, folder / MANIFEST)
    _flush(folder)


def _flush(path: Path) -> None:
    """Force a file or directory onto the disk, so that a power cut cannot undo the order of the steps."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a directory, and journals renames itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Delete the generations that the manifest does not name: the one just replaced, and those of killed builds."""
    try:
        current = read_manifest(folder)["generation"]
    except IndexRefused:
        current = ""
    for path in folder.glob(GENERATION + "*"):
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)
