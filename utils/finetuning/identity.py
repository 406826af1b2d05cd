"""Which base model is this: a Hub name and revision, or the digest of its weights.

Knows loaded models, their folders and the Hub's cache layout. Two folders with the same weights are the same base, in any precision.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import checkpoints
from utils.runtime import ROOT

SNAPSHOT = re.compile(r"models--(?P<owner>[^/\\]+)--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class BaseIdentity:
    """Which weights these are: a Hub revision, or the SHA-256 of the weights; `parameters` also tells resized embeddings."""

    name: str
    revision: str | None
    digest: str | None
    parameters: int

    def same_weights(self, other: BaseIdentity) -> bool:
        """True when both are known to be the same weights, whatever the folder is called and whatever the precision."""
        same_revision = self.revision is not None and (self.name, self.revision) == (other.name, other.revision)
        same_digest = self.digest is not None and self.digest == other.digest
        return (same_revision or same_digest) and self.parameters == other.parameters

    def __str__(self) -> str:
        what = f"revision {self.revision[:12]}" if self.revision else f"SHA-256 {(self.digest or 'unknown')[:12]}"
        return f"{self.name} ({what}, {self.parameters:,} parameters)"


def base_identity(model: Any, with_digest: bool = False) -> BaseIdentity:
    """The identity of `model`, without the adapter it may carry: Hub name and revision, else the digest of its files.

    with_digest: hash the files of a Hub model too (a second per GB). Weights that come from no folder are hashed in memory; then
    the precision counts.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    source = str(getattr(model.config, "_name_or_path", "") or "")
    folder = Path(source) if source and Path(source).is_dir() else None
    revision = getattr(model.config, "_commit_hash", None) if source and not folder else None
    if found := SNAPSHOT.search(source):
        source, revision = f"{found['owner']}/{found['name']}", found["revision"]
    digest = None
    if revision is None or with_digest:
        digest = checkpoints.digest(folder) if folder else _digest_in_memory(model)
    return BaseIdentity(_short_name(source, folder if not revision else None), revision, digest, _parameters(model))


def _short_name(source: str, folder: Path | None) -> str:
    """A Hub id, or the folder without what only this machine knows."""
    if folder is None:
        return source or "a model in memory"
    folder = folder.resolve()
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else folder.name


def _base_weights(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, weight) for name, weight in model.named_parameters() if "lora_" not in name)


def _parameters(model: Any) -> int:
    shapes = (getattr(getattr(weight, "quant_state", None), "shape", weight.shape) for _, weight in _base_weights(model))
    return sum(math.prod(shape) for shape in shapes)


def _digest_in_memory(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for name, weight in _base_weights(model):
        digest.update(f"{name.replace('.base_layer', '')} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
