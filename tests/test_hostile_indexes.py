"""Index folders and libraries from strangers, or damaged: refused with advice, never half believed; nothing outside them is touched."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from tests.hash_embedder import HashEmbedder
from tests.hostile import REPEATABLE, contents, damaged, ends
from utils.indexes import build_index, open_index
from utils.indexes.folder import MANIFEST, IndexRefused, read_manifest
from utils.library import Library

PASSAGES = [Document(page_content=text, metadata={"n": n}, id=str(n)) for n, text in enumerate(["four bits", "é", "a harbour"])]
EMBEDDER = HashEmbedder(dimension=8)
FILES = [MANIFEST, "documents.jsonl", "vectors.npy", "index.faiss"]
POSIX = pytest.mark.skipif(os.name == "nt", reason="pipes and links are POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_index(PASSAGES, EMBEDDER, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def built(folder: Path) -> tuple[Path, dict]:
    """The folder, and its manifest as it was built."""
    return folder, read_manifest(folder)


def file_of(folder: Path, name: str) -> Path:
    return folder / name if name == MANIFEST else folder / read_manifest(folder)["generation"] / name


def sign(folder: Path, manifest: dict) -> None:
    """Writes a manifest with the digest that belongs to it, as anybody can who has read the code."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest}), encoding="utf-8")


def refused(folder: Path) -> str:
    """Returns why the index is refused; "" if it opens and is exactly what was built."""
    try:
        with ends():
            store = open_index(folder, EMBEDDER)
            found = store.similarity_search("four bits", k=3)
    except IndexRefused as error:
        assert str(folder) in str(error) and error.reason and str(error).rstrip().endswith(".") and "\n" not in str(error).strip()
        return error.reason
    assert sorted(one.page_content for one in found) == sorted(one.page_content for one in PASSAGES)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_every_altered_byte_is_refused(folder, name):
    file = file_of(folder, name)
    original, manifest = file.read_bytes(), read_manifest(folder)
    for place in range(len(original)):
        file.write_bytes(original[:place] + bytes([original[place] ^ (1 << place % 8)]) + original[place + 1 :])
        if not refused(folder):
            assert name == MANIFEST and read_manifest(folder) == manifest, f"byte {place}"  # a space that became another one
    file.write_bytes(original)
    assert refused(folder) == ""


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_refused(folder, name):
    file = file_of(folder, name)
    original, manifest = file.read_bytes(), read_manifest(folder)
    for copy in damaged(original, 60):
        file.write_bytes(copy)
        assert copy == original or refused(folder) or (name == MANIFEST and read_manifest(folder) == manifest)


@pytest.mark.parametrize("name", ["documents.jsonl", "vectors.npy"])
def test_damaged_file_with_the_right_digest_is_refused_or_read_and_nothing_else(folder, name):
    file, manifest = file_of(folder, name), read_manifest(folder)
    for copy in damaged(file.read_bytes(), 150, seed=1):
        file.write_bytes(copy)
        manifest["files"][name] = {"bytes": len(copy), "sha256": hashlib.sha256(copy).hexdigest()}
        sign(folder, manifest)
        try:
            with ends():
                open_index(folder, EMBEDDER).similarity_search("four bits", k=3)
        except IndexRefused as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize(
    "line", ["[]", "5", "null", '{"id": 1, "text": "a", "metadata": {}}', '{"id": "1", "text": "a", "metadata": []}', "{}"]
)
def test_passage_of_another_kind_is_refused(folder, line):
    file, manifest = file_of(folder, "documents.jsonl"), read_manifest(folder)
    file.write_text(f"{line}\n" * 3, encoding="utf-8")
    manifest["files"]["documents.jsonl"] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    sign(folder, manifest)
    assert "do not fit together" in refused(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["format", "generation", "files", "store", "settings", "count", "embedder", "metric"]


@REPEATABLE
@given(key=st.sampled_from(KEYS), inner=st.sampled_from(["", "kind", "id", "digest", "dimension", "probe", "index.faiss"]), value=JSON)
def test_signed_manifest_with_any_value_is_refused_or_means_the_same(built, key, inner, value):
    folder, manifest = built
    part = manifest[key]
    sign(folder, {**manifest, key: {**part, inner: value} if inner and isinstance(part, dict) else value})
    refused(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", "generation-1/../../outside", ""])
def test_manifest_cannot_lead_out_of_its_folder(folder, name):
    manifest = read_manifest(folder)
    (folder / manifest["generation"]).rename(folder.parent / "outside")
    sign(folder, {**manifest, "generation": name})
    assert "no plain name" in refused(folder)
    sign(folder, {**manifest, "files": {f"../{name}": {"bytes": 1, "sha256": ""}}})
    assert "no plain name" in refused(folder)


@pytest.mark.parametrize("manifest", ["", "[]", "null", "{}", "[" * 100_000, '{"format": 1}', "\x00", "\ufeff{}"])
def test_file_that_is_no_manifest_is_refused(folder, manifest):
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    assert refused(folder)


@POSIX
def test_what_stands_in_a_files_place_is_refused_and_not_waited_for(folder):
    file = file_of(folder, "documents.jsonl")
    file.unlink()
    os.mkfifo(file)
    assert "documents.jsonl has 0 bytes" in refused(folder)
    file.unlink()
    file.mkdir()
    assert refused(folder)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    assert "no complete index" in refused(folder)


@POSIX
def test_links_in_a_strangers_folder_lead_no_write_and_no_deletion_outside(folder):
    outside = folder.parent / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("precious")
    (outside / "folder" / "file").write_text("precious")
    before = contents(outside)
    (folder / (MANIFEST + ".new")).symlink_to(outside / "file")
    (folder / "generation-0000").symlink_to(outside / "folder")
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(outside / "file")
    try:
        build_index([*PASSAGES, Document(page_content="new")], EMBEDDER, folder)
    except OSError as error:
        assert ".lock" in str(error)  # the lock is not taken through a link
    assert contents(outside) == before
    (folder / ".lock").unlink(missing_ok=True)
    assert build_index([*PASSAGES, Document(page_content="new")], EMBEDDER, folder).count == 4
    assert contents(outside) == before


@POSIX
def test_library_writes_its_list_through_no_link(tmp_path):
    (tmp_path / "given.md").write_text("# Text\n\nHere.")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "documents.json.new").symlink_to(tmp_path / "precious")
    Library(EMBEDDER, tmp_path / "library").add(tmp_path / "given.md")
    assert (tmp_path / "precious").read_text() == "precious"
    assert [one.name for one in Library(EMBEDDER, tmp_path / "library").reports()] == ["given.md"]


def test_damaged_list_of_documents_is_refused_with_advice_or_read(tmp_path):
    (tmp_path / "given.md").write_text("# Text\n\nHere.")
    Library(EMBEDDER, tmp_path / "library").add(tmp_path / "given.md")
    with pytest.raises(IndexRefused, match="made by another embedder.*Delete .*index and .*documents.json, and add the documents again"):
        Library(HashEmbedder(dimension=8, id="another"), tmp_path / "library")
    file = tmp_path / "library" / "documents.json"
    refusals = 0
    for copy in [*damaged(file.read_bytes(), 80), b"", b"{}", b"5", b"[5]", b"[{}]", b'[{"name": []}]', b"[" * 100_000]:
        file.write_bytes(copy)
        try:
            Library(EMBEDDER, tmp_path / "library")
        except ValueError as error:
            refusals += 1
            assert "Delete" in str(error) and "add the documents again" in str(error)
    assert refusals > 50
