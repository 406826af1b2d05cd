"""No key in any output: canaries in the environment, errors provoked on every path that knows a key, and a search in what comes out."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.gates import MACHINE_PATH
from tests.hostile import contents
from tools.registry import ROOT

# Put together here, so that no search for keys takes this file for one.
CANARIES = {
    "HF_TOKEN": "hf_" + "Canary0" * 5,
    "PINECONE_API_KEY": "pcsk_" + "canary1" * 5,
    "OPENAI_API_KEY": "sk-" + "canary2" * 5,
    "LANGSMITH_API_KEY": "lsv2_" + "canary3" * 5,
    "LANGCHAIN_API_KEY": "lsv2_" + "canary4" * 5,
    "QDRANT_API_KEY": "canary5" * 5,
    "WEAVIATE_API_KEY": "canary6" * 5,
    "COURSE_TEST_KEY": "canary7" * 5,
}
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bpcsk_[A-Za-z0-9_]{20,}|\blsv2_[a-z0-9_]{20,}|\bgh[opsu]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{30,}|\bxox[abp]-[\w-]{10,}|\bglpat-[\w-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))

PROVOKE = """
import logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from langchain_core.documents import Document
from tests.hash_embedder import HashEmbedder
from utils.assistant import Assistant
from utils.indexes import build_index
from utils.library import Library
from utils.models import load_chat_model, load_llm
from utils.results import record
from utils.runtime import detect, report

key, away, embedder = os.environ["COURSE_TEST_KEY"], "http://127.0.0.1:9", HashEmbedder()
passages = [Document(page_content="text", metadata={"n": 1})]
remote = load_chat_model(base_url=away + "/v1", model="m", api_key_env="COURSE_TEST_KEY", max_retries=0)

def send(store, **options):
    return build_index(passages, embedder, f"index-{store}", store=store, attempts=1, url=away, **options)

attempts = {
    "gated": lambda: load_llm("gemma-3-270m-it"),
    "no such model": lambda: load_llm("nobody/nothing"),
    "server in the way": lambda: load_llm("nobody/broken"),
    "key in a URL": lambda: load_chat_model(base_url=f"http://me:{key}@127.0.0.1:9/v1", model="m"),
    "key in a query": lambda: load_chat_model(base_url=f"https://host.invalid/v1?key={key}", model="m"),
    "no answer": lambda: remote.invoke("hello"),
    "no stream": lambda: list(remote.stream("hello")),
    "pinecone": lambda: send("pinecone"), "qdrant": lambda: send("qdrant"), "weaviate": lambda: send("weaviate"),
    "key in an index's URL": lambda: build_index(passages, embedder, "index", store="qdrant", url=f"http://me:{key}@127.0.0.1:9"),
    "no number": lambda: record("a", float("nan")),
    "no document": lambda: Assistant(remote, embedder, "assistant").ask("What?"),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print("NO ERROR", name)
    except Exception:
        traceback.print_exc()
store = build_index(passages, embedder, "kept")
things = [remote, remote.model_dump(), remote._identifying_params, store, vars(store), Library(embedder, "library"), detect(), report()]
print(*map(repr, things), sep="\\n")
"""


class Hub(BaseHTTPRequestHandler):
    """The Hub's refusals: a gated model, one that is not there, a fault. `seen` keeps the keys that it was sent."""

    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        status, code = (403, "GatedRepo") if "gemma" in self.path.lower() else (500, "") if "broken" in self.path else (404, "RepoNotFound")
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Returns all that a Python process with the canaries printed."""
    env = {**os.environ, **CANARIES, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]), **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=200)
    return f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def leaks(*texts: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if any(canary in text for text in texts)]


def test_report_for_issues_shows_no_key(tmp_path):
    said = run(tmp_path, "-m", "utils.runtime")
    assert said.startswith("exit 0") and "profile" in said and leaks(said) == []


@pytest.mark.slow
def test_no_error_object_log_or_file_shows_a_key(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"COURSE_PROFILE": "hub-cpu", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    try:
        said = run(tmp_path, "-c", PROVOKE, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", **hub)
    finally:
        server.shutdown()
        server.server_close()
    assert said.startswith("exit 0") and "NO ERROR" not in said, said[-3000:]
    assert f"Bearer {CANARIES['HF_TOKEN']}" in Hub.seen, "the token was sent, so it could have been shown"
    assert "is gated. Accept its licence" in said and "DEBUG:" in said and "carries more than an address" in said
    assert leaks(said) == []
    written = {name: raw for name, raw in contents(tmp_path).items() if raw}
    assert any(name.endswith("manifest.json") for name in written)
    assert [name for name, raw in written.items() if leaks(raw.decode("utf-8", "replace"))] == []


@pytest.mark.slow
def test_question_that_cannot_be_answered_shows_no_key(tmp_path):
    (tmp_path / "empty").mkdir()
    for documents in ("empty", "missing"):
        said = run(tmp_path, "-m", "tools.ask", "What is NF4?", "--docs", documents)
        assert not said.startswith("exit 0") and "Traceback" not in said and leaks(said) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_notebook_holds_no_key_and_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert TOKEN.search(text) is None
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    assert MACHINE_PATH.search(json.dumps(outputs, ensure_ascii=False)) is None


def test_search_for_keys_finds_them():
    others = ["gh" + "p_" + "a1" * 18, "AK" + "IA" + "A1" * 8, "-----BEGIN " + "RSA PRIVATE KEY-----"]
    assert [key for key in [*list(CANARIES.values())[:5], *others] if not TOKEN.search(f'"{key}"')] == []
    assert TOKEN.search("a task-specific sk-learn model, hf_hub_download and the SHA 0123456789abcdef") is None
    assert MACHINE_PATH.search('"File /home/someone/course/a.py"') and NOTEBOOKS
