"""`make ask`: the index is cached between calls, kept up to date, and mistakes are answered in words."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import ask

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def documents(tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "BUILD", tmp_path / "build")
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "cat.md").write_text("# Cats\n\nThe cat of the house is called Mina and sleeps on the printer.\n", encoding="utf-8")
    return folder


def test_second_call_reopens_and_a_changed_file_embeds_only_what_is_new(documents):
    from utils.models import load_embedder

    embedder = load_embedder()
    _, first = ask.cached_index(documents, embedder)
    _, second = ask.cached_index(documents, embedder)
    (documents / "dog.md").write_text("# Dogs\n\nThe dog next door is called Bruno.\n", encoding="utf-8")
    store, third = ask.cached_index(documents, embedder)
    assert first == "1 passages, 1 embedded now" and second == "1 passages, index reopened" and third == "2 passages, 1 embedded now"
    assert store.count == 2


def test_folder_without_text_is_answered_in_words(documents):
    (documents / "cat.md").unlink()
    with pytest.raises(ValueError, match="there is no text in"):
        ask.cached_index(documents, embedder=None)


def test_two_folders_of_the_same_name_have_their_own_index(tmp_path):
    assert ask.index_folder(tmp_path / "a" / "notes") != ask.index_folder(tmp_path / "b" / "notes")
    assert ask.index_folder(ask.HANDBOOK).name == "handbook"


@pytest.mark.parametrize(("arguments", "said"), [([""], "Ask something"), (["x", "--docs", "absent"], "There is no absent")])
def test_mistake_is_answered_in_words(arguments, said):
    result = subprocess.run([sys.executable, "-m", "tools.ask", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr
