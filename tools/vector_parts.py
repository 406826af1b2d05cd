"""Vectors in a folder, block by block: what `embed_many` writes, so that a run which was killed can go on.

folder/manifest.json      which job this is: embedder with its digest, passages with theirs, block size; another job is refused
folder/part-00000.npy     float32 unit vectors of the first block, shape (block size, dimension), in the order of the passages
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def manifest(texts: Sequence[str], key: str | None, block: int) -> dict[str, Any]:
    """Returns what makes a job this job."""
    from utils import checkpoints

    source = checkpoints.find(key, "embedder")
    embedder = {"embedder": source.name, "embedder_sha256": checkpoints.digest(checkpoints.fetch(source))}
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return {"format": 1, **embedder, "passages": len(texts), "block": block, "texts_sha256": digest}


def check_manifest(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes the manifest of a new folder; raises ValueError when the folder belongs to another job."""
    file = folder / "manifest.json"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files of something else. Give the vectors a folder of their own.")
        write_whole(file, lambda stream: stream.write(json.dumps(wanted, indent=1).encode()))
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    differing = [f"{name}: {found.get(name)} there, {value} here" for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise ValueError(f"{folder} holds the vectors of another job ({'; '.join(differing)}). Give this one a folder of its own.")


def read_vectors(folder: str | Path) -> np.ndarray:
    """Returns all vectors, shape (passages, dimension). Raises ValueError naming the first block that is not there yet."""
    folder = Path(folder)
    job = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    parts = [part(folder, number) for number in range(-(-job["passages"] // job["block"]))]
    missing = [one.name for one in parts if not one.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(parts)} blocks are missing, the first is {missing[0]}. Run embed_many again; it goes on.")
    return np.concatenate([np.load(one) for one in parts])


def part(folder: Path, number: int) -> Path:
    """Returns the file of a block."""
    return folder / f"part-{number:05d}.npy"


def write_whole(file: Path, write: Any) -> None:
    """Calls `write` with a stream; `file` appears when all is written, and not before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    with fresh.open("wb") as stream:
        write(stream)
    os.replace(fresh, file)
