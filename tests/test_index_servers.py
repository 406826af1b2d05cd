"""Index servers: the same index behind Chroma's real server, and behind Qdrant, Weaviate and Pinecone spoken to over their APIs.

Chroma's server is real and really killed. For the other three no server can be installed here: stand-ins on loopback check each
request against the documented API (`*_standin.py`), and a live test runs where a URL or key is given.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from tests import pinecone_standin, qdrant_standin, weaviate_standin
from tests.hash_embedder import HashEmbedder
from tests.index_builders import build_until_batch
from tests.index_servers import ChromaServer
from tests.test_indexes import passages
from utils.indexes import build_index, open_index
from utils.indexes.faiss_store import FaissStore
from utils.indexes.folder import IndexRefused, _replace_manifest, read_manifest
from utils.indexes.server import ServerStore
from utils.indexes.upsert import Patience, ServerUnavailable, UpsertInterrupted, checked_url, in_batches, passes

QUICK = {"attempts": 3, "first_wait": 0.01}
KEYS = {
    "QDRANT_API_KEY": qdrant_standin.KEY,
    "WEAVIATE_API_KEY": weaviate_standin.KEY,
    "PINECONE_API_KEY": pinecone_standin.KEY,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
    pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Con004:ResourceWarning"),
]


@pytest.fixture(scope="session")
def chroma(tmp_path_factory):
    server = ChromaServer(tmp_path_factory.mktemp("chroma"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["chroma", "qdrant", "weaviate", "pinecone"])
def server(request, monkeypatch):
    """The options that put an index behind a server, and the stand-in, which is None for the real Chroma server."""
    if request.param == "chroma":
        yield {"store": "chroma", "url": request.getfixturevalue("chroma").url}, None
        return
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    if request.param == "pinecone":
        standin = pinecone_standin.PineconeStandIn()
        options = {"store": "pinecone", "url": standin.url}
    elif request.param == "qdrant":
        standin = qdrant_standin.QdrantStandIn(KEYS["QDRANT_API_KEY"])
        options = {"store": "qdrant", "url": standin.url}
    else:
        standin = weaviate_standin.WeaviateStandIn(KEYS["WEAVIATE_API_KEY"])
        options = {"store": "weaviate", "url": standin.url, "grpc_port": standin.grpc_port}
    yield options, standin
    standin.close()


def keys_at(index):
    """What the server holds, asked anew."""
    return index._list_keys(index.index)


def cut_off(monkeypatch, at, do):
    """Calls `do(number)` before each try of an upsert from number `at` on (0 is the first)."""
    tries, real = iter(range(10**6)), ServerStore.__subclasses__()
    for kind in real:
        original = kind._upsert

        def upsert(self, *arguments, original=original):
            number = next(tries)
            if number >= at:
                do(number)
            return original(self, *arguments)

        monkeypatch.setattr(kind, "_upsert", upsert)


# -- what every server does


def test_one_changed_argument_puts_the_index_behind_a_server_and_the_answers_stay(server, tmp_path):
    options, standin = server
    exact = build_index(passages(250), HashEmbedder(), tmp_path)
    index = build_index(passages(250), HashEmbedder(), tmp_path, batch_size=100, **options)
    assert index.embedded_count == 0 and index.sent_count == 250 and (standin is None or standin.batches == [100, 100, 50])
    for query in ["graph of keys", "adapter weight layer"]:
        wanted, found = exact.similarity_search_with_score(query, k=3), index.similarity_search_with_score(query, k=3)
        assert [document for document, _ in found] == [document for document, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-4)
    assert standin is None or [p for p in standin.problems if " 404 " not in p] == []
    index.close()


def test_changes_reach_the_server_and_only_they_are_sent(server, tmp_path):
    options, _ = server
    index = build_index(passages(30), HashEmbedder(), tmp_path, **options)
    assert build_index(passages(30), HashEmbedder(), tmp_path, **options).sent_count == 0
    moved = [Document(page_content=d.page_content, metadata={"moved": True}, id=d.id) for d in index.documents[:2]]
    index.add_documents([*moved, Document(page_content="a fresh text")])
    index.delete([index.documents[9].id])
    assert index.sent_count == 0 and index.count == 30 and len(keys_at(index)) == 30
    again = open_index(tmp_path, HashEmbedder(), store=options["store"])
    assert again.sent_count == 0 and again.documents == index.documents and again.documents[0].metadata == {"moved": True}
    assert again.similarity_search("a fresh text", k=1)[0].page_content == "a fresh text"
    fewer = build_index(passages(5), HashEmbedder(), tmp_path, **options)
    assert fewer.embedded_count == 0 and fewer.sent_count <= 2 and len(keys_at(fewer)) == 5
    assert len(fewer.similarity_search("graph", k=50)) == 5


def test_reopening_fills_what_the_server_lost_and_deletes_what_is_stale_there(server, tmp_path):
    options, _ = server
    index = build_index(passages(20), HashEmbedder(), tmp_path, **options)
    keys = sorted(keys_at(index))
    index._remove(index.index, keys[:6])
    stale = str(uuid.UUID(index.mark + "0" * 24))  # as a change that was killed before its end leaves it
    index._upsert(index.index, [stale], index.state.contents.passages[:1], np.ones((1, 32), np.float32))
    embedder = HashEmbedder()
    opened = open_index(tmp_path, embedder, store=options["store"])
    assert opened.sent_count == 6 and embedder.embedded == [] and keys_at(opened) == set(keys)
    assert opened.similarity_search_with_score("graph", k=20) == index.similarity_search_with_score("graph", k=20)


def test_entries_of_another_origin_are_refused_and_never_deleted(server, tmp_path):
    options, _ = server
    named = {("namespace" if options["store"] == "pinecone" else "collection"): "Shared"}
    first = build_index(passages(3), HashEmbedder(), tmp_path / "a", **options, **named)
    with pytest.raises(IndexRefused, match=r"'Shared' of .* holds 3 entries that this index did not write.*give another"):
        build_index(passages(5), HashEmbedder(), tmp_path / "b", **options, **named)
    assert len(keys_at(first)) == 3
    assert len(keys_at(build_index(passages(5), HashEmbedder(), tmp_path / "b", **options))) == 5  # a collection of its own


@pytest.mark.parametrize("server", ["qdrant", "weaviate", "pinecone"], indirect=True)
def test_key_is_sent_to_the_server_and_stands_nowhere_else(server, tmp_path, monkeypatch, caplog):
    options, standin = server
    caplog.set_level(logging.DEBUG)
    index = build_index(passages(3), HashEmbedder(), tmp_path, **options, **QUICK)
    standin.faults = [(503, {"Retry-After": "0"})] * 20 if options["store"] != "weaviate" else [("RESOURCE_EXHAUSTED",)] * 20
    with pytest.raises(UpsertInterrupted) as caught:
        index.add_documents([Document(page_content="fresh")])
    standin.faults = []
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key + "-wrong")
    with pytest.raises(Exception) as refused:  # noqa: B017 (each client has an error of its own)
        open_index(tmp_path, HashEmbedder(), store=options["store"], **QUICK)
    written = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    seen = [*written, str(caught.value), str(refused.value), repr(index), str(index.settings), caplog.text]
    assert [text[:80] for text in seen if any(key in text for key in KEYS.values())] == []
    assert len(written) >= 3 and "HTTP Request" in caplog.text  # there was something to look through


def test_key_is_not_sent_to_a_server_that_only_the_folder_names(tmp_path, monkeypatch):
    standin = qdrant_standin.QdrantStandIn()
    build_index(passages(3), HashEmbedder(), tmp_path, store="qdrant", url=standin.url)
    manifest = read_manifest(tmp_path)
    manifest["settings"]["url"] = "https://collects-keys.example:6333"
    _replace_manifest(tmp_path, manifest)
    monkeypatch.setenv("QDRANT_API_KEY", KEYS["QDRANT_API_KEY"])
    with pytest.raises(IndexRefused, match="names the server https://collects-keys.example:6333, .*your QDRANT_API_KEY.*pass url="):
        open_index(tmp_path, HashEmbedder(), store="qdrant")
    assert open_index(tmp_path, HashEmbedder(), store="qdrant", url=standin.url).count == 3
    standin.close()


# -- a server that goes away


def test_chroma_killed_in_mid_upsert_ends_in_a_clear_account_and_the_same_call_continues(chroma, tmp_path, monkeypatch):
    options = {"store": "chroma", "url": chroma.url, "batch_size": 100, **QUICK}
    wanted = passages(450)
    cut_off(monkeypatch, 2, lambda number: chroma.kill() if number == 2 else None)
    with pytest.raises(UpsertInterrupted, match="200 of 450 passages are stored there, 250 are not") as caught:
        build_index(wanted, HashEmbedder(), tmp_path, **options)
    message = str(caught.value)
    assert f"Chroma at {chroma.url} did not answer after 3 tries" in message and "chroma run --path" in message
    assert f"{tmp_path} holds all of them" in message and "run the same call again" in message
    assert len(caught.value.stored) == 200 and len(caught.value.missing) == 250 and caught.value.missing[0] in message
    with pytest.raises(ServerUnavailable, match="Chroma at .* did not answer after 3 tries"):
        open_index(tmp_path, HashEmbedder(), store="chroma", **QUICK)

    chroma.start()
    embedder = HashEmbedder()
    index = build_index(wanted, embedder, tmp_path, **options)
    assert embedder.embedded == [] and index.sent_count == 250 and len(keys_at(index)) == 450
    exact = build_index(wanted, HashEmbedder(), tmp_path / "exact")
    assert index.similarity_search("graph of keys", k=3) == exact.similarity_search("graph of keys", k=3)


def test_chroma_that_comes_back_within_the_waits_is_not_noticed(chroma, tmp_path, monkeypatch):
    def restart(number):
        if number == 1:
            chroma.kill()
        if number == 2:  # the second try of the second batch
            chroma.start()

    cut_off(monkeypatch, 1, restart)
    index = build_index(passages(250), HashEmbedder(), tmp_path, store="chroma", url=chroma.url, batch_size=100, **QUICK)
    assert index.sent_count == 250 and len(keys_at(index)) == 250


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and the fork server are POSIX")
@pytest.mark.slow
def test_process_killed_in_mid_upsert_loses_nothing_and_opening_sends_the_rest(chroma, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.index_builders", "utils.indexes.chroma_store", "chromadb"])
    builder = context.Process(target=build_until_batch, args=(str(tmp_path), chroma.url, 2), daemon=True)
    builder.start()
    builder.join(120)
    assert builder.exitcode == -signal.SIGKILL
    embedder = HashEmbedder()
    index = open_index(tmp_path, embedder, store="chroma")
    assert index.count == 500 and index.sent_count == 300 and embedder.embedded == [] and len(keys_at(index)) == 500


def test_server_that_is_away_before_the_start_costs_no_embedding(tmp_path):
    embedder = HashEmbedder()
    with pytest.raises(ServerUnavailable, match="Qdrant at http://127.0.0.1:9 did not answer after 2 tries .*docker run"):
        build_index(passages(3), embedder, tmp_path, store="qdrant", url="http://127.0.0.1:9", attempts=2, first_wait=0.01)
    assert embedder.embedded == []


@pytest.mark.parametrize("server", ["qdrant", "weaviate", "pinecone"], indirect=True)
def test_interrupted_addition_refuses_half_answers_and_is_continued_by_the_next_call(server, tmp_path):
    options, standin = server
    index = build_index(passages(30), HashEmbedder(), tmp_path, **options, **QUICK)
    first = (503, {"Retry-After": "0"}) if options["store"] != "weaviate" else ("RESOURCE_EXHAUSTED",)
    standin.faults = [first]
    index.add_documents([Document(page_content="waited for")])
    assert standin.faults == [] and index.sent_count == 1
    standin.faults = [first] * 50
    with pytest.raises(UpsertInterrupted, match="31 of 33 passages are stored there, 2 are not"):
        index.add_documents([Document(page_content="one more"), Document(page_content="and another")])
    standin.faults = []
    with pytest.raises(ServerUnavailable, match="incomplete since a change was interrupted"):
        index.similarity_search("graph")
    index.add_documents([Document(page_content="something else")])
    texts = {document.page_content for document in index.similarity_search("graph", k=99)}
    assert len(texts) == 34 and {"one more", "and another", "something else"} < texts and len(keys_at(index)) == 34


def test_batch_that_the_server_refuses_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", qdrant_standin.KEY)
    standin = qdrant_standin.QdrantStandIn(qdrant_standin.KEY)
    standin.faults = [(413, {})]
    with pytest.raises(UpsertInterrupted, match=r"refused a batch \(UnexpectedResponse: .*413.*Put right what it says.*same call again"):
        build_index(passages(3), HashEmbedder(), tmp_path, store="qdrant", url=standin.url)
    assert standin.faults == [] and standin.batches == []
    standin.close()


@pytest.mark.parametrize("attempts", [1, 4])
def test_waits_double_from_the_first_and_the_last_error_is_raised_unchanged(attempts, monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)

    def away():
        calls.append(1)
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        Patience(attempts, first_wait=1.0).call(away)
    assert len(calls) == attempts and [int(wait) for wait in waits] == [1, 2, 4][: attempts - 1]


class Status(Exception):
    def __init__(self, status_code):
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Status(503), True), (Status(429), True), (Status(400), False), (Status(401), False), (TimeoutError(), True), (ValueError(), False)],
)
def test_faults_that_pass_are_told_from_faults_that_stay(error, expected):
    assert passes(error) is expected
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    assert passes(wrapped) is expected


def test_new_error_inside_the_handling_of_an_interruption_is_judged_by_itself():
    try:
        try:
            raise UpsertInterrupted("away", [], [])
        except UpsertInterrupted:
            raise Status(400)  # noqa: B904 (the context is what is tested)
    except Status as error:
        assert not passes(error)


@given(sizes=st.lists(st.integers(1, 100), max_size=60), most=st.integers(1, 10), most_bytes=st.integers(1, 300))
def test_batches_keep_order_and_both_limits(sizes, most, most_bytes):
    batches = list(in_batches(range(len(sizes)), sizes.__getitem__, most, most_bytes))
    assert [row for batch in batches for row in batch] == list(range(len(sizes))) and all(batches)
    assert all(len(batch) <= most and (len(batch) == 1 or sum(sizes[row] for row in batch) <= most_bytes) for batch in batches)


@pytest.mark.parametrize("url", ["http://me:canary@host:1", "https://host?api_key=canary", "localhost:8000", "ftp://host", "http://"])
def test_url_that_is_none_or_carries_a_key_is_refused_without_being_shown(url):
    with pytest.raises(ValueError, match="url") as caught:
        checked_url(url)
    assert "canary" not in str(caught.value)


def test_collection_with_another_metric_or_dimension_is_refused(chroma, tmp_path, monkeypatch):
    import chromadb

    client = chromadb.HttpClient("127.0.0.1", chroma.port)
    client.create_collection("euclid", configuration={"hnsw": {"space": "l2"}}, embedding_function=None)
    with pytest.raises(IndexRefused, match="metric l2, expected 32 .* and cosine; give another collection"):
        build_index(passages(3), HashEmbedder(), tmp_path / "a", store="chroma", url=chroma.url, collection="euclid")
    standin = qdrant_standin.QdrantStandIn()
    build_index(passages(3), HashEmbedder(dimension=8), tmp_path / "b", store="qdrant", url=standin.url, collection="small")
    with pytest.raises(IndexRefused, match="has dimension 8 .*expected 32"):
        build_index(passages(3), HashEmbedder(), tmp_path / "c", store="qdrant", url=standin.url, collection="small")
    standin.close()


class TestChromaServer(VectorStoreIntegrationTests):
    """LangChain's suite against the real server."""

    @pytest.fixture
    def vectorstore(self, chroma, tmp_path) -> VectorStore:
        return build_index([], self.get_embeddings(), tmp_path / "index", store="chroma", url=chroma.url)


# -- Pinecone in particular


@pytest.fixture
def pinecone(monkeypatch):
    monkeypatch.setenv("PINECONE_API_KEY", pinecone_standin.KEY)
    standin = pinecone_standin.PineconeStandIn()
    yield standin
    standin.close()


def test_pinecone_index_is_created_if_missing_and_used_if_there(pinecone, tmp_path):
    options = {"store": "pinecone", "url": pinecone.url, "index_name": "course", "namespace": "handbook"}
    build_index(passages(3), HashEmbedder(), tmp_path, **options)
    assert pinecone.indexes["course"]["schema"]["fields"] == {"embedding": {"type": "dense_vector", "dimension": 32, "metric": "cosine"}}
    made = [path for method, path, _ in pinecone.requests if (method, path) == ("POST", "/indexes")]
    pinecone.namespaces.clear()  # someone emptied it: it is filled from the saved vectors
    index = open_index(tmp_path, HashEmbedder(), store="pinecone")
    assert made == ["/indexes"] and index.embedded_count == 0 and len(pinecone.namespaces["handbook"]) == 3
    assert len([path for method, path, _ in pinecone.requests if (method, path) == ("POST", "/indexes")]) == 1


def test_pinecone_namespaces_of_one_index_are_searched_apart(pinecone, tmp_path):
    options = {"store": "pinecone", "url": pinecone.url}
    first = build_index(passages(10), HashEmbedder(), tmp_path / "a", namespace="first", **options)
    second = build_index(passages(10, seed=1), HashEmbedder(), tmp_path / "b", namespace="second", **options)
    assert {d.page_content for d in first.similarity_search("graph", k=20)} == {d.page_content for d in passages(10)}
    assert {d.page_content for d in second.similarity_search("graph", k=20)} == {d.page_content for d in passages(10, seed=1)}
    assert {name: len(there) for name, there in pinecone.namespaces.items()} == {"first": 10, "second": 10}


def test_pinecone_batches_keep_two_megabytes_whatever_the_dimension_and_any_batch_size(pinecone, tmp_path):
    documents = [Document(page_content=f"{n} " + "word" * 1250) for n in range(300)]
    build_index(documents, HashEmbedder(dimension=768), tmp_path, store="pinecone", url=pinecone.url, batch_size=5000)
    assert sum(pinecone.batches) == 300 and 1 < len(pinecone.batches) < 10  # the stand-in refuses over 2 MB or 1,000 documents


def test_pinecone_keeps_reserved_metadata_in_the_folder_only(pinecone, tmp_path):
    metadata = {"_secret": 1, "$x": 2, "page": 3, "none": None, "list": ["a", 1], "id": "own", "text": "own", "embedding": "own"}
    index = build_index(
        [Document(page_content="some text", metadata=metadata)], HashEmbedder(), tmp_path, store="pinecone", url=pinecone.url
    )
    ((document,),) = [list(there.values()) for there in pinecone.namespaces.values()]
    assert document["page"] == 3 and document["list"] == '["a", 1]' and document["text"] == "some text"
    assert not [name for name in document if name != "_id" and name[0] in "_$"]
    assert index.documents[0].metadata == metadata


def test_pinecone_without_package_key_or_with_another_dimension_says_what_to_do(pinecone, tmp_path, monkeypatch):
    options = {"store": "pinecone", "url": pinecone.url}
    build_index(passages(2), HashEmbedder(dimension=8), tmp_path / "a", **options)
    with pytest.raises(IndexRefused, match="has dimension 8 .*expected 32 .*give another index_name"):
        build_index(passages(2), HashEmbedder(), tmp_path / "b", **options)
    monkeypatch.delenv("PINECONE_API_KEY")
    with pytest.raises(ValueError, match="needs PINECONE_API_KEY in the environment"):
        build_index(passages(2), HashEmbedder(), tmp_path / "c", **options)
    monkeypatch.setitem(sys.modules, "pinecone", None)
    with pytest.raises(ImportError, match="pip install"):
        build_index(passages(2), HashEmbedder(), tmp_path / "c", **options)


def test_weaviate_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "weaviate", None)
    with pytest.raises(ImportError, match="pip install .weaviate-client"):
        build_index(passages(2), HashEmbedder(), tmp_path, store="weaviate")


# -- live, where there is one


@pytest.fixture
def outside(monkeypatch):
    """Lets a live test leave this machine: a URL or a key in the environment asks for it."""
    import sitecustomize

    monkeypatch.setattr(sitecustomize, "allowed", True)


def build_ask_and_empty(tmp_path, **options):
    """Compares a real server's answers with FAISS; Pinecone shows a write after some seconds."""
    wanted = FaissStore(HashEmbedder())
    wanted.add_documents(passages(60))
    index = build_index(passages(60), HashEmbedder(), tmp_path, batch_size=25, **options)
    for _ in range(60):
        if len(keys_at(index)) == 60 and index.similarity_search("graph of keys", k=3) == wanted.similarity_search("graph of keys", k=3):
            break
        time.sleep(1)
    found = index.similarity_search("graph of keys", k=3)
    index.delete()
    index.close()
    assert found == wanted.similarity_search("graph of keys", k=3)


@pytest.mark.skipif(not os.environ.get("QDRANT_URL"), reason="QDRANT_URL names no Qdrant server")
def test_live_qdrant_finds_what_faiss_finds(tmp_path, outside):
    build_ask_and_empty(tmp_path, store="qdrant", url=os.environ["QDRANT_URL"])


@pytest.mark.skipif(not os.environ.get("WEAVIATE_URL"), reason="WEAVIATE_URL names no Weaviate server")
def test_live_weaviate_finds_what_faiss_finds(tmp_path, outside):
    build_ask_and_empty(tmp_path, store="weaviate", url=os.environ["WEAVIATE_URL"])


@pytest.mark.skipif(not os.environ.get("PINECONE_API_KEY"), reason="PINECONE_API_KEY is not set")
def test_live_pinecone_finds_what_faiss_finds(tmp_path, outside):
    build_ask_and_empty(tmp_path, store="pinecone", index_name="grounded-llms-test", namespace=f"test-{uuid.uuid4().hex[:8]}")
