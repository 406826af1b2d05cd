"""Indexes: what they find, what they embed, what they write, and what they refuse."""

import hashlib
import json
import time

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from tests.hash_embedder import HashEmbedder
from utils.indexes import build_index, open_index
from utils.indexes.faiss_store import FaissStore
from utils.indexes.folder import IndexRefused, exclusive

WORDS = "graph bits tokens cache keys values rank query passage vector cluster centroid adapter weight layer head loss score".split()
KINDS = ["flat", "hnsw", "ivf", "pq", "ivf-pq"]
IN_PROCESS = ["faiss", "chroma", "qdrant"]


def passages(count: int, seed: int = 0) -> list[Document]:
    dice = np.random.default_rng(seed)
    texts = [" ".join(dice.choice(WORDS, 6)) + f" number{n}" for n in range(count)]
    return [Document(page_content=text, metadata={"n": n, "title": f"Article {n % 3}"}) for n, text in enumerate(texts)]


def generation(folder):
    (found,) = folder.glob("generation-*")
    return found


# -- what is found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 20, 300])
def test_every_kind_works_for_any_number_of_passages_and_scores_are_cosines(kind, count):
    store, embedder = FaissStore(HashEmbedder(), kind=kind), HashEmbedder()
    documents = passages(count)
    store.add_documents(documents)
    (best, score), *_ = store.similarity_search_with_score(documents[-1].page_content, k=1)
    assert best.page_content == documents[-1].page_content and score == pytest.approx(1, abs=1e-5)
    query = np.array(embedder.embed_query("graph of keys"))
    for document, score in store.similarity_search_with_score("graph of keys", k=5):
        vector = np.array(embedder.embed_query(document.page_content))
        assert score == pytest.approx(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query), abs=1e-5)


def test_flat_index_equals_brute_force():
    store = FaissStore(HashEmbedder())
    store.add_documents(passages(200))
    queries = np.array([HashEmbedder().embed_query(document.page_content) for document in passages(10, seed=1)], dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, rows = store.search_vectors(queries, top_k=10)
    assert (rows == np.argsort(-(queries @ store.vectors.T), axis=1, kind="stable")[:, :10]).all()
    assert np.allclose(scores, np.take_along_axis(queries @ store.vectors.T, rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_approximate_kinds_find_most_of_what_flat_finds(kind):
    documents, queries = passages(1000), [document.page_content for document in passages(30, seed=1)]
    exact, store = FaissStore(HashEmbedder()), FaissStore(HashEmbedder(), kind=kind)
    exact.add_documents(documents)
    store.add_documents(documents)
    vectors = np.array(HashEmbedder().embed_documents(queries))
    wanted, found = exact.search_vectors(vectors, 10)[1], store.search_vectors(vectors, 10)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(wanted, found, strict=True)]) > 0.5


@pytest.mark.parametrize("store", IN_PROCESS)
def test_every_store_finds_the_same_passages_with_the_same_scores(store, tmp_path):
    exact = FaissStore(HashEmbedder())
    exact.add_documents(passages(50))
    other = build_index(passages(50), HashEmbedder(), tmp_path, store=store)
    for query in ["graph of keys", "adapter weight layer"]:
        wanted, found = exact.similarity_search_with_score(query, k=5), other.similarity_search_with_score(query, k=5)
        assert [document for document, _ in found] == [document for document, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-4)


@pytest.mark.parametrize("store", IN_PROCESS)
def test_asking_for_more_than_there_is_gives_all_and_an_empty_store_gives_nothing(store, tmp_path):
    index = build_index(passages(3), HashEmbedder(), tmp_path, store=store)
    assert len(index.similarity_search("graph", k=10)) == 3
    index.delete()
    assert index.similarity_search("graph", k=10) == [] and index.count == 0
    assert open_index(tmp_path, HashEmbedder(), store=store).max_marginal_relevance_search("graph") == []


def test_a_query_that_does_not_fit_is_refused_in_words():
    store = FaissStore(HashEmbedder())
    store.add_documents(passages(3))
    with pytest.raises(ValueError, match="query has 2 dimensions, the index 32"):
        store.similarity_search_by_vector([1.0, 0.0])
    with pytest.raises(ValueError, match="at least 1 passage"):
        store.similarity_search("graph", k=0, filter={"n": 1})


def test_filter_relevance_and_mmr_follow_langchain():
    store = FaissStore(HashEmbedder())
    store.add_documents(passages(30))
    found = store.similarity_search("graph", k=30, filter={"title": "Article 1"})
    assert len(found) == 10 and {document.metadata["title"] for document in found} == {"Article 1"}
    assert [d.metadata["n"] for d in store.similarity_search("graph", k=9, filter=lambda d: d.metadata["n"] == 7)] == [7]
    assert store.similarity_search("graph", filter={"title": "none"}) == []
    scored = dict((d.id, s) for d, s in store.similarity_search_with_score("graph", k=3))
    for document, relevance in store.similarity_search_with_relevance_scores("graph", k=3):
        assert relevance == pytest.approx((1 + scored[document.id]) / 2)
    assert len({document.id for document in store.max_marginal_relevance_search("graph", k=4)}) == 4


# -- what is embedded


@pytest.mark.parametrize("store", IN_PROCESS)
def test_building_again_embeds_only_unseen_texts_and_drops_passages_no_longer_given(store, tmp_path):
    embedder = HashEmbedder()
    assert build_index(passages(20), embedder, tmp_path, store=store).embedded_count == 20
    embedder.embedded.clear()
    changed = [*passages(20)[5:], Document(page_content="a fresh text")]
    index = build_index(changed, embedder, tmp_path, store=store)
    assert embedder.embedded == ["a fresh text"] and index.embedded_count == 1 and index.count == 16
    assert [d.page_content for d in index.documents] == [d.page_content for d in changed]
    assert index.similarity_search(passages(20)[0].page_content, k=1)[0].page_content != passages(20)[0].page_content


@pytest.mark.parametrize("store", IN_PROCESS)
def test_reopening_embeds_nothing_and_finds_the_same(store, tmp_path):
    built = build_index(passages(20), HashEmbedder(), tmp_path, store=store)
    embedder = HashEmbedder()
    opened = open_index(tmp_path, embedder, store=store)
    assert embedder.embedded == [] and opened.documents == built.documents
    assert opened.similarity_search_with_score("graph") == built.similarity_search_with_score("graph")
    opened.add_documents([Document(page_content="a fresh text")])
    opened.delete([built.documents[0].id])
    again = open_index(tmp_path, HashEmbedder(), store=store)
    assert again.count == 20 and again.similarity_search("a fresh text", k=1)[0].page_content == "a fresh text"


def test_changing_kind_store_or_metadata_embeds_nothing(tmp_path):
    build_index(passages(60), HashEmbedder(), tmp_path)
    moved = [Document(page_content=d.page_content, metadata={"moved": True}) for d in passages(60)]
    kinds = [(passages(60), {"kind": kind}) for kind in KINDS]
    for documents, options in [*kinds, (moved, {"kind": "hnsw", "m": 8}), (moved, {"store": "chroma"})]:
        index = build_index(documents, HashEmbedder(), tmp_path, **options)
        assert index.embedded_count == 0 and index.count == 60
    assert index.documents[0].metadata == {"moved": True}
    assert build_index(moved, HashEmbedder(), tmp_path).index.ntotal == 60  # back from Chroma to faiss


def test_unchanged_build_writes_nothing_and_equal_texts_are_embedded_once(tmp_path):
    documents = [Document(page_content="same text", metadata={"page": page}) for page in (1, 2)]
    assert build_index([*documents, documents[0]], HashEmbedder(), tmp_path).embedded_count == 1
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    index = build_index(documents, HashEmbedder(), tmp_path)
    assert index.count == 2 and index.embedded_count == 0 and (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_two_open_stores_keep_each_others_additions(tmp_path):
    first = build_index(passages(3), HashEmbedder(), tmp_path)
    second = open_index(tmp_path, HashEmbedder())
    first.add_documents([Document(page_content="from the first")])
    second.add_documents([Document(page_content="from the second")])
    texts = {document.page_content for document in open_index(tmp_path, HashEmbedder()).documents}
    assert {"from the first", "from the second"} < texts and len(texts) == 5


def test_failing_embedder_leaves_memory_and_folder_as_they_were(tmp_path):
    class Broken(HashEmbedder):
        def embed_documents(self, texts):
            return [[float("nan")] * self.dimension for _ in texts]

    build_index(passages(3), HashEmbedder(), tmp_path)
    store = open_index(tmp_path, Broken())
    with pytest.raises(ValueError, match="NaN"):
        store.add_documents([Document(page_content="fresh")])
    assert store.count == 3 and open_index(tmp_path, HashEmbedder()).count == 3


# -- what is written


def test_folder_holds_plain_files_only_and_faiss_alone_can_read_them(tmp_path):
    import faiss

    build_index(passages(30), HashEmbedder(), tmp_path, kind="hnsw")
    assert {path.name for path in generation(tmp_path).iterdir()} == {"documents.jsonl", "vectors.npy", "index.faiss"}
    vectors = np.load(generation(tmp_path) / "vectors.npy", allow_pickle=False)
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert faiss.read_index(str(generation(tmp_path) / "index.faiss")).ntotal == 30
    assert [json.loads(line)["metadata"]["n"] for line in (generation(tmp_path) / "documents.jsonl").open()] == list(range(30))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["count"] == 30 and manifest["embedder"]["dimension"] == 32 and manifest["embedder"]["id"] == "hash-words"
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((generation(tmp_path) / name).read_bytes()).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("store", ["chroma", "qdrant"])
def test_no_store_leaves_a_pickle_on_disk(store, tmp_path):
    build_index(passages(30), HashEmbedder(), tmp_path, store=store)
    assert {path.name for path in generation(tmp_path).iterdir()} == {"documents.jsonl", "vectors.npy"}


def test_any_text_and_nested_metadata_come_back_unchanged_and_stay_unchanged(tmp_path):
    metadata = {"sources": ["a", "b"], "deep": {"x": None, "y": 1.5}, "page": 3}
    document = Document(page_content="naïve 量化 \u2028 line\n🙂 \x00 end", metadata=metadata)
    for store in IN_PROCESS:
        index = build_index([document], HashEmbedder(), tmp_path / store, store=store)
        found = open_index(tmp_path / store, HashEmbedder(), store=store).documents[0]
        assert found.page_content == document.page_content and found.metadata == metadata
        index.documents[0].metadata["deep"]["x"] = "changed"
        assert index.documents[0].metadata == metadata
    with pytest.raises(TypeError, match="'some text' cannot be stored"):
        build_index([Document(page_content="some text", metadata={"when": time})], HashEmbedder(), tmp_path / "other")


# -- what is refused


@pytest.mark.parametrize(
    ("embedder", "reason"),
    [
        (HashEmbedder(id="another"), "made by another embedder: 'hash-words', not 'another'"),
        (HashEmbedder(digest="v2"), "with other weights: digest v1, not v2"),
        (HashEmbedder(dimension=16), "with 32 dimensions, the given embedder 'hash-words' has 16"),
        (DeterministicFakeEmbedding(size=32), "made by another embedder"),
    ],
)
def test_index_refuses_another_embedder_and_a_build_with_it_embeds_all_again(embedder, reason, tmp_path):
    build_index(passages(5), HashEmbedder(), tmp_path)
    with pytest.raises(IndexRefused, match=reason):
        open_index(tmp_path, embedder)
    with pytest.warns(UserWarning, match="embedding all passages again.*" + reason):
        assert build_index(passages(5), embedder, tmp_path).embedded_count == 5


def test_embedder_without_digest_is_known_by_its_class_and_a_probe(tmp_path):
    class Plain(DeterministicFakeEmbedding):
        shift: float = 0.0

        def embed_query(self, text):
            return [x + self.shift * number for number, x in enumerate(super().embed_query(text))]

    build_index(passages(5), Plain(size=32), tmp_path)
    assert open_index(tmp_path, Plain(size=32)).count == 5
    with pytest.raises(IndexRefused, match="now gives another vector for the same text"):
        open_index(tmp_path, Plain(size=32, shift=0.1))


@pytest.mark.parametrize("name", ["documents.jsonl", "vectors.npy", "index.faiss", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_index_refuses_a_damaged_file_and_is_built_again(name, damage, tmp_path):
    build_index(passages(5), HashEmbedder(), tmp_path)
    path = tmp_path / name if name == "manifest.json" else generation(tmp_path) / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(raw[:-7] if damage == "truncated" else raw)
    with pytest.raises(IndexRefused, match=f"{name.split('.')[0]}.*Build it again"):
        open_index(tmp_path, HashEmbedder())
    if (tmp_path / "manifest.json").exists():
        with pytest.warns(UserWarning, match="embedding all passages again"):
            build_index(passages(5), HashEmbedder(), tmp_path)
    assert build_index(passages(5), HashEmbedder(), tmp_path).count == 5


def test_array_of_python_objects_is_never_unpickled(tmp_path):
    """Even with digests to match, a vectors.npy that holds pickled objects is refused unread."""
    from utils.indexes.folder import read_manifest, write_generation

    build_index(passages(2), HashEmbedder(), tmp_path)
    manifest = read_manifest(tmp_path)
    saved = {path.name: path.read_bytes() for path in generation(tmp_path).iterdir()}

    def write(directory):
        for name, raw in saved.items():
            (directory / name).write_bytes(raw)
        np.save(directory / "vectors.npy", np.array([[{}]], dtype=object), allow_pickle=True)

    write_generation(tmp_path, {key: manifest[key] for key in ("store", "settings", "metric", "count", "embedder")}, write)
    with pytest.raises(IndexRefused, match="do not fit together"):
        open_index(tmp_path, HashEmbedder())


def test_folder_of_other_files_another_store_and_no_index_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(IndexRefused, match=r"holds other files \(letter.txt"):
        build_index(passages(2), HashEmbedder(), tmp_path)
    with pytest.raises(IndexRefused, match="no complete index here"):
        open_index(tmp_path / "absent", HashEmbedder())
    build_index(passages(2), HashEmbedder(), tmp_path / "new", store="qdrant")
    with pytest.raises(IndexRefused, match="built for store='qdrant', not 'faiss'"):
        open_index(tmp_path / "new", HashEmbedder())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "annoy"}, "choose one of flat, hnsw"),
        ({"kind": "hnsw", "nlist": 3}, "its options: m, ef_construction, ef_search"),
        ({"kind": "ivf", "nlist": 0}, "at least 1"),
        ({"kind": "pq", "m": 5}, "m=5 does not divide the dimension 32"),
        ({"store": "milvus"}, "choose one of faiss, chroma, qdrant, weaviate, pinecone"),
        ({"store": "chroma", "kind": "hnsw"}, "option of store='faiss'"),
    ],
)
def test_wrong_option_names_the_right_ones(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        build_index(passages(40), HashEmbedder(), tmp_path, **options)


def test_waiting_for_a_lock_ends_with_a_reason(tmp_path):
    with exclusive(tmp_path), pytest.raises(TimeoutError, match="another process has been building"), exclusive(tmp_path, timeout=0.1):
        pass


def test_chroma_store_lives_beside_a_readers_own_in_memory_clients(tmp_path):
    import chromadb
    from langchain_chroma import Chroma

    import utils  # noqa: F401 (settles Chroma's telemetry before its first client)

    own = chromadb.EphemeralClient().create_collection("my-own-collection")
    Chroma("another", embedding_function=HashEmbedder())
    index = build_index(passages(3), HashEmbedder(), tmp_path, store="chroma")
    assert own.count() == 0 and index.index.count() == 3
    assert index.index.get(where={"n": 1})["documents"] == [passages(3)[1].page_content]


# -- with the course's real embedder


def test_minilm_finds_by_meaning_and_reopens_far_faster_than_it_embeds(tmp_path):
    from utils.models import load_embedder

    texts = [
        "NF4 keeps each weight of the model in four bits.",
        "The KV cache keeps keys and values so that nothing is computed twice.",
        "HNSW walks a graph of neighbours from coarse to fine.",
    ]
    filler = [f"Entry {number}: the library opens at nine and lends books, maps and music to anyone with a card." for number in range(40)]
    embedder = load_embedder("minilm")
    start = time.perf_counter()
    build_index([Document(page_content=text) for text in texts + filler], embedder, tmp_path)
    built = time.perf_counter() - start
    start = time.perf_counter()
    store = open_index(tmp_path, embedder)
    opened = time.perf_counter() - start
    found = store.similarity_search("How many bits does a quantized parameter take?", k=1)
    assert found[0].page_content == texts[0]
    assert built / opened > 20  # 43 passages only; the handbook gives several hundred
