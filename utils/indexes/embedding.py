"""Who made these vectors: an embedder's identity, and texts turned into unit vectors.

Knows how to tell two embedders apart and how to call any LangChain `Embeddings`. Does not know how vectors are stored or searched.

An embedder from `utils.models` states its `id`, `digest` and `dimension`. For any other one the id is its class and model name,
and a probe vector (one short text, embedded) stands in for the digest of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

PROBE = "The quick brown fox jumps over the lazy dog."
SAME_PROBE = 0.999  # cosine; bf16 against fp32 on one model gives more, another model far less
BATCH = 1024  # passages between two steps of the progress bar


@dataclass(frozen=True)
class EmbedderIdentity:
    """What an index remembers of its embedder; `probe` is empty when the digest is known."""

    id: str
    digest: str
    dimension: int
    probe: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as JSON-ready values."""
        return {**asdict(self), "probe": list(self.probe)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbedderIdentity:
        """Return the identity that `as_dict` wrote; raises ValueError, KeyError or TypeError for anything else."""
        probe = tuple(float(value) for value in values["probe"])
        return cls(str(values["id"]), str(values["digest"]), int(values["dimension"]), probe)


def identify(embedder: Embeddings) -> EmbedderIdentity:
    """Return the identity of `embedder`; calls it once, on one short text, only if it does not state digest and dimension."""
    digest, dimension = getattr(embedder, "digest", None), getattr(embedder, "dimension", None)
    probe: tuple[float, ...] = ()
    if not digest or not dimension:
        vector = unit_vectors([embedder.embed_query(PROBE)])[0]
        dimension = len(vector)
        probe = () if digest else tuple(round(float(x), 4) for x in vector)
    return EmbedderIdentity(_name(embedder), str(digest or ""), int(dimension), probe)


def _name(embedder: Embeddings) -> str:
    """Return the embedder's stated id, or its class with the model's name."""
    stated = getattr(embedder, "id", None)
    if isinstance(stated, str) and stated:
        return stated
    models = [getattr(embedder, name, None) for name in ("model_name", "model", "repo_id")]
    model = next((value for value in models if isinstance(value, str)), "")
    return f"{type(embedder).__qualname__}({model})"


def difference(made_by: EmbedderIdentity, given: EmbedderIdentity) -> str:
    """Return in words how the embedder of an index and the given one differ; an empty string when they are the same."""
    if made_by.dimension != given.dimension:
        return f"made by {made_by.id!r} with {made_by.dimension} dimensions, the given embedder {given.id!r} has {given.dimension}"
    if made_by.id != given.id:
        return f"made by another embedder: {made_by.id!r}, not {given.id!r}"
    if made_by.digest != given.digest:
        return f"made by {made_by.id!r} with other weights: digest {made_by.digest[:12] or 'unknown'}, not {given.digest[:12] or 'unknown'}"
    if len(made_by.probe) != len(given.probe):
        return f"made by {made_by.id!r}, which was identified in another way"
    if made_by.probe and float(np.dot(made_by.probe, given.probe)) < SAME_PROBE:
        return f"made by {made_by.id!r}, which now gives another vector for the same text"
    return ""


def unit_vectors(vectors: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return the rows as float32 vectors of length 1, shape (rows, dimension); a row of zeros stays zero.

    Raises ValueError when a row is not finite: an index with NaN in it answers nothing.
    """
    matrix = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    if not np.isfinite(matrix).all():
        raise ValueError("the embedder returned NaN or infinite values; load it in float32 and embed again")
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.ascontiguousarray(matrix / np.where(norms == 0, 1, norms))


def embed_texts(embedder: Embeddings, texts: Sequence[str], dimension: int) -> np.ndarray:
    """Return unit vectors of `texts`, shape (len(texts), dimension); a progress bar appears on work over two seconds.

    An embedder with `shows_progress = True` gets all texts in one call and draws its own bar.
    """
    own_bar = getattr(embedder, "shows_progress", False)
    size = len(texts) if own_bar else min(BATCH, max(32, len(texts) // 50))
    return _embed_in_batches(embedder, texts, dimension, max(1, size), show=not own_bar)


def _embed_in_batches(embedder: Embeddings, texts: Sequence[str], dimension: int, size: int, show: bool) -> np.ndarray:
    """Return unit vectors, embedding the longest texts first so that a batch pads little; the bar is plain text, no widget."""
    from tqdm import tqdm

    vectors = np.empty((len(texts), dimension), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    with tqdm(total=len(texts), desc="embedding", unit="passage", delay=2, leave=False, disable=not show) as bar:
        for first in range(0, len(texts), size):
            rows = order[first : first + size]
            batch = unit_vectors(embedder.embed_documents([texts[row] for row in rows]))
            if batch.shape != (len(rows), dimension):
                raise ValueError(f"the embedder returned vectors of shape {batch.shape}, expected {(len(rows), dimension)}")
            vectors[rows] = batch
            bar.update(len(rows))
    return vectors
