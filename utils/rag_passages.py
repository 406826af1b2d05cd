"""An index of ours as transformers' RagRetriever reads it: a saved `datasets.Dataset` and a FAISS inner-product index beside it.

    <index>-rag-<encoder>/generation-<hex>/    id, title, text, embeddings (Arrow) · index.faiss

The folder lies beside the index, is swapped in atomically with a manifest of digests (`indexes.folder`), and is written again when the
index or the encoder is another one. Nothing is pickled. Knows no model: whoever calls it says how passages become vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.indexes.folder import MANIFEST, IndexRefused, exclusive, load_generation, read_manifest, refuse, write_generation
from utils.indexes.passages import Contents, Passage

if TYPE_CHECKING:
    import numpy as np

FAISS_FILE = "index.faiss"
STORE = "rag"  # tells this folder from an index
Encode = Callable[[Sequence[Passage]], "np.ndarray"]


class SavedPassages(NamedTuple):
    """Where RagRetriever finds the passages: RagConfig's `passages_path` and `index_path`, and how many of which dimension."""

    passages_path: str
    index_path: str
    size: int
    dimension: int


def save_passages(index_folder: Path, encoder: str, digest: str, encode: Encode | None = None) -> SavedPassages:
    """The passages of the index in `index_folder` with vectors by `encode`, or with the index's own when it is None; cached.

    Raises:
        IndexRefused: no index there, a damaged or an empty one, or (without `encode`) one that `encoder` did not make.
    """
    manifest = read_manifest(index_folder)
    if not manifest["count"]:
        raise refuse(index_folder, "it holds no passage", "Build it from at least one.")
    if encode is None and (manifest["embedder"]["id"], manifest["embedder"]["digest"]) != (encoder, digest):
        made_by = manifest["embedder"]["id"]
        raise refuse(
            index_folder,
            f"it was made by {made_by!r}, and this model encodes questions with {encoder!r}",
            f"Build it with build_index(passages, load_embedder({encoder!r}), folder).",
        )
    files = manifest["files"]
    wanted = {"encoder": encoder, "digest": digest, **{name: files[name]["sha256"] for name in ("documents.jsonl", "vectors.npy")}}
    cache = index_folder.with_name(f"{index_folder.name}-rag-{encoder}")
    found = _read(cache, wanted)
    if found is None:
        with exclusive(cache):
            found = _read(cache, wanted)  # another process may have written it while this one waited
            if found is None:
                _build(index_folder, cache, wanted, encode)
                found = load_generation(cache, _locate)
    return found


def _read(cache: Path, wanted: dict[str, str]) -> SavedPassages | None:
    """What the cache holds if that is what is wanted, whole; raises IndexRefused when an index lies there, which is not ours to replace."""
    if not (cache / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(cache)
        if manifest["store"] == STORE and manifest["made_from"] == wanted:
            return load_generation(cache, _locate)
    except IndexRefused:
        return None  # altered or cut short: written again
    if manifest["store"] != STORE:
        raise IndexRefused(f"{cache} is where the passages for RagRetriever belong, and it holds an index: move that index elsewhere")
    return None


def _locate(manifest: dict[str, Any], directory: Path) -> SavedPassages:
    return SavedPassages(str(directory), str(directory / FAISS_FILE), manifest["count"], manifest["dimension"])


def _build(index_folder: Path, cache: Path, wanted: dict[str, str], encode: Encode | None) -> None:
    import numpy as np

    contents = load_generation(index_folder, lambda manifest, directory: Contents.read(directory))
    vectors = contents.vectors if encode is None else encode(contents.passages)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    described = {"store": STORE, "made_from": wanted, "count": len(vectors), "dimension": vectors.shape[1]}
    described |= {"settings": {}, "embedder": {}}  # what a manifest of an index names, and this has no use for
    write_generation(cache, described, lambda directory: _write(directory, contents.passages, vectors))


def _write(directory: Path, passages: Sequence[Passage], vectors: np.ndarray) -> None:
    import faiss
    from datasets import Dataset, Features, List, Value

    text = {name: Value("string") for name in ("id", "title", "text")}
    columns: dict[str, Any] = {
        "id": [passage.id for passage in passages],
        "title": [title(passage) for passage in passages],
        "text": [passage.text for passage in passages],
        "embeddings": vectors,
    }
    with quiet():
        Dataset.from_dict(columns, features=Features({**text, "embeddings": List(Value("float32"))})).save_to_disk(directory)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(directory / FAISS_FILE))


def title(passage: Passage) -> str:
    """The title of a passage's document; its article or its file where it has none."""
    found = (passage.metadata.get(name) for name in ("title", "article", "source"))
    return str(next((value for value in found if value), ""))


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving without the progress bars of transformers and datasets, which otherwise end up in every saved notebook."""
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging as transformers_logging

    shown = [module for module in (transformers_logging, datasets_logging) if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()
