"""The FAISS index types of the course and sensible settings for a given number of vectors.

All score by inner product, which is the cosine for the unit vectors we store. Small collections get smaller settings instead of an
error, so a notebook runs on a reader's ten documents as well as on a million. Source: the FAISS wiki, "Guidelines to choose an index".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

OPTIONS: dict[str, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("m", "ef_construction", "ef_search"),
    "ivf": ("nlist", "nprobe"),
    "pq": ("m", "nbits", "refine"),
    "ivf-pq": ("nlist", "nprobe", "m", "nbits", "refine"),
}
TRAINED = ("ivf", "pq", "ivf-pq")  # kinds that learn centroids from the vectors
POINTS_PER_CENTROID = 39  # below this FAISS warns that centroids are trained on too little


def check_settings(kind: str, options: dict[str, Any]) -> None:
    """Raise ValueError naming the kinds, or the options of this kind, when one is unknown or not a positive whole number."""
    if kind not in OPTIONS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(OPTIONS)}")
    for name, value in options.items():
        if name not in OPTIONS[kind]:
            raise ValueError(f"kind {kind!r} has no option {name!r}; its options: {', '.join(OPTIONS[kind]) or 'none'}")
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")


def make(vectors: np.ndarray, kind: str, options: dict[str, Any]) -> Any:
    """Return a trained FAISS index holding `vectors` (count, dimension), which must be float32 unit vectors."""
    index = _MAKERS[kind](vectors, options)
    if kind in TRAINED:
        index.train(_enough(vectors, 2 ** _nbits(vectors, options) if "pq" in kind else 1))
    index.add(vectors)
    return index


def _flat(vectors: np.ndarray, options: dict[str, Any]) -> Any:
    """Return an exact index: every vector is compared."""
    import faiss

    return faiss.IndexFlatIP(vectors.shape[1])


def _hnsw(vectors: np.ndarray, options: dict[str, Any]) -> Any:
    """Return a navigable small-world graph: `m` links per vector, searched with `ef_search` candidates."""
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], options.get("m", 32), faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = options.get("ef_construction", 200)
    index.hnsw.efSearch = options.get("ef_search", 64)
    return index


def _ivf(vectors: np.ndarray, options: dict[str, Any]) -> Any:
    """Return an inverted file: `nlist` clusters, of which a search visits `nprobe`."""
    import faiss

    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], _nlist(vectors, options), faiss.METRIC_INNER_PRODUCT)
    return _with_probes(index, options)


def _pq(vectors: np.ndarray, options: dict[str, Any]) -> Any:
    """Return product-quantized vectors: `m` codes of `nbits` bits each."""
    import faiss

    index = faiss.IndexPQ(vectors.shape[1], _sub_vectors(vectors, options), _nbits(vectors, options), faiss.METRIC_INNER_PRODUCT)
    _quick_to_train(index.pq.cp)
    return index


def _ivf_pq(vectors: np.ndarray, options: dict[str, Any]) -> Any:
    """Return an inverted file of product-quantized vectors."""
    import faiss

    dimension = vectors.shape[1]
    shape = (_nlist(vectors, options), _sub_vectors(vectors, options), _nbits(vectors, options))
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dimension), dimension, *shape, faiss.METRIC_INNER_PRODUCT)
    _quick_to_train(index.pq.cp)
    return _with_probes(index, options)


def _quick_to_train(clustering: Any) -> None:
    """Set ten rounds of k-means per code book: FAISS's 25 took 2.8 times as long for one point of recall@10 more (13,000 vectors)."""
    clustering.niter, clustering.min_points_per_centroid = 10, 1


def _with_probes(index: Any, options: dict[str, Any]) -> Any:
    """Return an inverted file that visits `nprobe` clusters, by default an eighth of them and at least four."""
    index.cp.min_points_per_centroid = 1
    index.nprobe = min(index.nlist, options.get("nprobe", max(4, index.nlist // 8)))
    return index


def _nlist(vectors: np.ndarray, options: dict[str, Any]) -> int:
    """Return the number of clusters: 4·√count, but no more than can be trained well."""
    count = len(vectors)
    wanted = options.get("nlist", min(round(4 * math.sqrt(count)), count // POINTS_PER_CENTROID))
    return max(1, min(wanted, count))


def _nbits(vectors: np.ndarray, options: dict[str, Any]) -> int:
    """Return the bits per code: 8, or fewer when there are fewer than 256 vectors to learn centroids from."""
    return min(options.get("nbits", 8), max(1, int(math.log2(max(2, len(vectors))))))


def _sub_vectors(vectors: np.ndarray, options: dict[str, Any]) -> int:
    """Return the number of codes per vector: a divisor of the dimension, by default near dimension / 8 (32 times smaller than float32)."""
    dimension = vectors.shape[1]
    wanted = options.get("m", max(1, dimension // 8))
    if "m" in options and dimension % wanted:
        raise ValueError(f"m={wanted} does not divide the dimension {dimension}; choose a divisor such as {math.gcd(wanted, dimension)}")
    return next(m for m in range(wanted, 0, -1) if dimension % m == 0)


def _enough(vectors: np.ndarray, needed: int) -> np.ndarray:
    """Return at least `needed` training vectors, repeating them when a collection is tiny."""
    return np.ascontiguousarray(np.tile(vectors, (math.ceil(needed / len(vectors)), 1)) if len(vectors) < needed else vectors)


_MAKERS = {"flat": _flat, "hnsw": _hnsw, "ivf": _ivf, "pq": _pq, "ivf-pq": _ivf_pq}
