"""A model behind an OpenAI-compatible URL: it comes up, answers as the model itself does, and never outlives its block."""

import asyncio
import csv
from pathlib import Path

import psutil
import pytest
from tiny_models import make_llm

from tools import load_server, speed_generation
from tools.logs import write_csv
from tools.serve import CONTINUOUS, ServerError, free_port, serve_command, start_server

CHAT = [{"role": "user", "content": "Which number format stores four bits?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_llm(tmp_path_factory.mktemp("models") / "tiny-llama")


def expected(folder: Path, tokens: int) -> str:
    """What the model writes without the chat model's shortcuts, which round otherwise: what random weights say hangs on rounding."""
    from utils.chat import LocalChatModel
    from utils.models import load_llm

    loaded = load_llm(folder)
    chat_model = LocalChatModel(llm=loaded.model, tokenizer=loaded.tokenizer, model_name="tiny", max_new_tokens=tokens, prompt_lookup=0)
    return chat_model.invoke(CHAT).text


@pytest.mark.slow
def test_a_server_answers_what_the_model_answers_and_stops(folder, tmp_path):
    from utils.models import load_chat_model

    with start_server(folder, CONTINUOUS, threads=1, log=tmp_path / "server.log") as server:
        assert server.is_healthy() and server.model == folder.name
        chat_model = load_chat_model(base_url=server.base_url, model=server.model, max_new_tokens=12)
        text = chat_model.invoke(CHAT).text
        pieces = [chunk.text for chunk in chat_model.stream(CHAT)]
        timings, seconds = asyncio.run(load_server.load(server.base_url, server.model, [CHAT], clients=3, requests=5, max_tokens=12))
    assert text.strip() == expected(folder, 12).strip()
    streamed = "".join(pieces)  # half a character at the end, as random weights may write, is not streamed
    assert streamed and text.rstrip("\ufffd") == streamed.rstrip("\ufffd") and len([piece for piece in pieces if piece]) > 1
    assert [one.text for one in timings] == [streamed] * 5
    assert all(0 < one.first_s <= one.total_s <= seconds and one.tokens == 12 for one in timings)
    assert not server.is_healthy() and server.process.poll() is not None


@pytest.mark.slow
def test_a_server_that_dies_shows_its_log_and_leaves_no_process(tmp_path):
    empty = tmp_path / "no-model-here"
    empty.mkdir()
    with pytest.raises(ServerError, match="ended with exit code 1") as caught:
        start_server(empty, log=tmp_path / "server.log")
    assert "no-model-here" in str(caught.value) and "Error" in str(caught.value)
    assert not [child for child in psutil.Process().children() if "serve" in child.cmdline()]


def test_the_server_listens_on_loopback_only_and_its_model_is_named_by_its_folder(folder):
    command = serve_command(folder, 4321)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "4321"
    assert folder.name in command and str(folder) not in command


def test_a_free_port_can_be_bound():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))


def test_a_log_is_replaced_whole(tmp_path):
    timings = [load_server.Timing(0.5, 1.0, 12, "text"), load_server.Timing(0.75, 2.0, 7, "more")]
    for engine in ("sequential", "continuous"):
        write_csv(tmp_path / "logs" / "load.csv", load_server.rows_of(engine, 2, timings, 2.5))
    with (tmp_path / "logs" / "load.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["engine"], row["request"], float(row["first_s"])) for row in rows] == [("continuous", "1", 0.5), ("continuous", "2", 0.75)]
    assert not list(tmp_path.rglob("*.new"))


def test_the_written_loop_says_what_generate_says(folder):
    import torch
    from transformers import DynamicCache, StaticCache

    from utils.models import load_llm

    model, tokenizer, _ = load_llm(folder)
    ids = tokenizer.apply_chat_template([CHAT], add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, min_new_tokens=10, do_sample=False)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=128)):
        written, first, total = speed_generation.decode(model, ids, model.forward, cache, tokens=10)
        assert written == wanted[0, ids.shape[1] :].tolist()
        assert 0 < first <= total


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not speed_generation.can_compile("cpu")
    assert speed_generation.can_compile("cuda")
