"""A T4 without a T4: torch's answers about the card are faked, and everything that the course decides from them is checked.

A T4 (compute capability 7.5) has no bf16, an A100 (8.0) has; both have the 14 GB that profile colab-gpu asks for.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from tiny_models import make_llm

from tools import t4_estimate
from tools.headers import table_cell
from tools.registry import NOTEBOOKS, load_registry
from utils import attention, catalog, checkpoints, embedder, models, runtime
from utils.finetuning import qlora_config, run, state
from utils.memory import NotEnoughMemoryError, check_memory


class Card(NamedTuple):
    """What a graphics card says of itself; memory in GB of 10^9 bytes, as free as on a fresh Colab runtime."""

    name: str
    capability: tuple[int, int]
    memory_gb: float
    free_gb: float


T4, A100 = Card("Tesla T4", (7, 5), 16.1, 15.0), Card("NVIDIA A100-SXM4-40GB", (8, 0), 42.9, 42.0)


@pytest.fixture
def insert(monkeypatch):
    """Puts a card into this machine, as far as torch.cuda and nvidia-smi are asked."""

    def card_in(card: Card) -> None:
        monkeypatch.delenv("COURSE_PROFILE", raising=False)
        monkeypatch.setattr(runtime, "visible_gpu", lambda: (card.name, card.memory_gb))
        answers = {
            "is_available": True,
            "get_device_capability": card.capability,
            "get_device_name": card.name,
            "mem_get_info": (int(card.free_gb * 1e9), int(card.memory_gb * 1e9)),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    return card_in


class Asked(Exception):
    """Raised instead of loading; carries what the loader was asked for."""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What `load_llm` hands to transformers, read at the last moment before weights would move to the card."""
    from transformers import AutoModelForCausalLM

    folder = make_llm(tmp_path / "llama", "llama")
    monkeypatch.setattr(checkpoints, "fetch", lambda source: source.folder or folder)

    def refuse(*_, **options):
        raise Asked(options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)

    def options(*arguments, **keywords):
        with pytest.raises(Asked) as raised:
            models.load_llm(*arguments, **keywords)
        return raised.value.args[0]

    return options


# --- which machine is this ---------------------------------------------------------------------------------------------------------


def test_t4_computes_in_fp16_and_says_that_it_has_no_bf16(insert):
    insert(T4)
    machine = runtime.detect()
    assert (machine.device, machine.compute_dtype, machine.profile, machine.gpu) == ("cuda", torch.float16, "colab-gpu", "Tesla T4")
    assert "no bf16" in machine.dtype_reason and "so fp16" in machine.dtype_reason and "7.5" in machine.dtype_reason
    assert "Tesla T4 has 16.1 GB" in machine.profile_reason and machine.free_memory_gb == 15.0


def test_a100_computes_in_bf16_and_says_why(insert):
    insert(A100)
    machine = runtime.detect()
    assert (machine.compute_dtype, machine.profile) == (torch.bfloat16, "colab-gpu")
    assert "8.0 has bf16 tensor cores" in machine.dtype_reason


def test_report_of_a_t4_reads_as_a_reader_would_post_it(insert):
    insert(T4)
    text = runtime.report()
    for part in ("colab-gpu: Tesla T4", "cuda (Tesla T4)", "float16: compute capability 7.5 has no bf16", "15.0 GB on cuda"):
        assert part in text


# --- models ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("card", "dtype"), [(T4, torch.float16), (A100, torch.bfloat16)])
def test_default_llm_of_a_gpu_is_asked_for_in_nf4_and_the_card_s_dtype(insert, asked, card, dtype):
    insert(card)
    options = asked()
    recipe = options["quantization_config"]
    assert (options["dtype"], options["device_map"]) == (dtype, {"": "cuda"})
    assert recipe.load_in_4bit and recipe.bnb_4bit_quant_type == "nf4" and recipe.bnb_4bit_use_double_quant
    assert recipe.bnb_4bit_compute_dtype == dtype
    assert options["trust_remote_code"] is False and options["use_safetensors"] is True


def test_model_asked_for_by_name_is_not_quantized_on_a_t4(insert, asked):
    insert(T4)
    options = asked("qwen3-0.6b")
    assert options["dtype"] == torch.float16 and "quantization_config" not in options


def test_int8_on_a_t4_keeps_the_rest_in_fp16(insert, asked):
    insert(T4)
    options = asked("qwen3-0.6b", quantization="int8")
    assert options["dtype"] == torch.float16 and options["quantization_config"].load_in_8bit


def test_embedder_and_reranker_of_a_t4_load_in_fp16(insert, monkeypatch, tmp_path):
    import sentence_transformers

    insert(T4)
    seen = {}
    monkeypatch.setattr(checkpoints, "fetch", lambda source: source.folder or tmp_path)
    monkeypatch.setattr(embedder, "SentenceEmbedder", lambda folder, **options: seen.setdefault("embedder", options))
    reranker = SimpleNamespace(model=None)
    monkeypatch.setattr(sentence_transformers, "CrossEncoder", lambda folder, **options: seen.update(reranker=options) or reranker)
    monkeypatch.setattr(attention, "use_best_attention", lambda model: None)
    models.load_embedder()
    models.load_reranker()
    assert (seen["embedder"]["device"], seen["embedder"]["dtype"]) == ("cuda", torch.float16)
    assert seen["reranker"] == {"device": "cuda", "model_kwargs": {"dtype": torch.float16}}


# --- memory ------------------------------------------------------------------------------------------------------------------------


def test_model_too_large_for_a_t4_is_refused_with_what_would_fit(insert):
    insert(T4)
    with pytest.raises(NotEnoughMemoryError) as refused:
        models.load_llm("qwen2.5-7b-instruct")
    text = str(refused.value)
    assert "qwen2.5-7b-instruct in fp16 needs about 18.3 GB, but 15.0 GB are free on cuda" in text
    assert "quantization='int8' (10.5 GB)" in text and "quantization='nf4'" in text and "or '" in text


def test_model_too_large_even_in_four_bits_names_another_one(insert):
    insert(T4)
    with pytest.raises(NotEnoughMemoryError, match=r"qwen3-32b in nf4 .* 15\.0 GB are free on cuda\. What would fit: '[\w.-]+' \("):
        models.load_llm("qwen3-32b", quantization="nf4")


@pytest.mark.parametrize("kind", ["llm", "embedder", "reranker"])
def test_defaults_of_the_colab_profile_fit_a_t4(insert, kind):
    insert(T4)
    card = catalog.get(catalog.default_key(kind, "colab-gpu"))
    check_memory(card.key, card.parameter_groups, "nf4" if kind == "llm" else None, torch.float16, "cuda", card.hidden_size)


# --- QLoRA -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("card", "mixed", "other"), [(T4, "fp16", "bf16"), (A100, "bf16", "fp16")])
def test_qlora_trains_in_the_card_s_dtype_and_not_in_the_other(insert, card, mixed, other):
    insert(card)
    config = qlora_config()
    settings = run.defaults(SimpleNamespace(device=torch.device("cuda"), is_quantized=True), config)
    assert (settings[mixed], settings[other], config.mixed_precision) == (True, False, mixed)
    assert config.quantization.bnb_4bit_compute_dtype == config.compute_dtype
    assert settings["optim"] == "paged_adamw_8bit" and settings["gradient_checkpointing"] and not settings["use_cpu"]
    assert f"compute dtype  {mixed}" in str(config)


def test_fp16_gradients_cannot_be_unscaled_so_the_adapter_is_trained_in_fp32(tmp_path):
    from utils.finetuning.trainer import QLoraTrainer

    scaler = torch.amp.GradScaler("cpu")
    for dtype, works in ((torch.float16, False), (torch.float32, True)):
        weight = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        scaler.scale(weight.float().sum()).backward()
        optimizer = torch.optim.AdamW([weight])
        if works:
            scaler.unscale_(optimizer)
            assert torch.equal(weight.grad, torch.ones(2))
        else:
            with pytest.raises(ValueError, match="unscale FP16 gradients"):
                scaler.unscale_(optimizer)
    trainer = trainer_of(tmp_path, QLoraTrainer)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}


def trainer_of(folder, kind):
    """A trainer of `kind` over a tiny model in fp16 with an adapter in fp16."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from utils.finetuning import prepare_chat_dataset

    saved = make_llm(folder / "llama", "llama")
    tokenizer = models.load_llm(saved, device="cpu").tokenizer
    base = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float16)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float16}
    rows = prepare_chat_dataset([{"prompt": "What is it?", "completion": "It is one."}] * 2, tokenizer, 64).dataset
    arguments = SFTConfig(output_dir=str(folder / "run"), use_cpu=True, report_to=[], bf16=False, max_length=None, disable_tqdm=True)
    return kind(model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def test_loss_scale_survives_a_killed_run(tmp_path):
    from utils.finetuning.trainer import QLoraTrainer

    def trainer(scale: float):
        weight = torch.nn.Parameter(torch.ones(2))
        made = object.__new__(QLoraTrainer)
        made.optimizer = torch.optim.AdamW([weight])
        made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: 1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(weight.sum()).backward()  # a scale exists from its first use on
        made.accelerator = SimpleNamespace(scaler=scaler)
        return made

    trainer(1024.0)._save_optimizer_and_scheduler(str(tmp_path))
    resumed = trainer(65536.0)
    resumed._load_optimizer_and_scheduler(str(tmp_path))
    assert resumed.accelerator.scaler.get_scale() == 1024.0
    assert state.load_state(tmp_path)["scaler"]["scale"] == 1024.0


# --- what the notebooks say --------------------------------------------------------------------------------------------------------

CHAPTERS = load_registry()


def test_registry_says_what_the_estimate_computes():
    text = (NOTEBOOKS / "index.toml").read_text(encoding="utf-8")
    assert t4_estimate.written(text) == text, "run `make badges`"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.id)
def test_every_notebook_fits_a_t4_and_its_header_says_that_this_is_computed(chapter):
    assert 0.5 < chapter.memory_t4_gb < 15
    assert chapter.minutes_t4 >= chapter.minutes_cpu, "Colab's cores are slower than those that the course was measured on"
    assert "(measured / computed" in table_cell(chapter)
    assert ("first run downloads" in table_cell(chapter)) == (chapter.download_t4_gb > 0)


def test_notebooks_load_by_default_what_the_estimate_counts():
    for chapter in CHAPTERS:
        code = chapter.path.read_text(encoding="utf-8")
        takes_default = "load_chat_model(max_new_tokens" in code or "load_chat_model()" in code or "load_llm()" in code
        assert takes_default == t4_estimate.LOADS[chapter.id].chats, chapter.id
        assert ("load_reranker()" in code) == ((t4_estimate.RERANKER, "fp16") in t4_estimate.LOADS[chapter.id].models), chapter.id


def test_notebook_whose_passes_were_not_counted_is_named(monkeypatch):
    monkeypatch.setattr(t4_estimate, "logged", lambda: [])
    with pytest.raises(ValueError, match="Notebook 05 is not in the log: run `python -m tools.model_passes 05`"):
        t4_estimate.minutes(next(chapter for chapter in CHAPTERS if chapter.id == "05"), t4_estimate.LOADS["05"])


def test_passes_are_counted_in_every_process_and_summed_by_kind(tmp_path):
    import os
    import subprocess
    import sys

    from tools.model_passes import HOOK, summed

    folder, log = make_llm(tmp_path / "llama", "llama"), tmp_path / "passes.csv"
    program = f"""
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}).eval()
ids = torch.arange(5, 15).reshape(2, 5)
model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
model.train()(input_ids=ids, labels=ids).loss.backward()
"""
    environment = {**os.environ, "COURSE_PASSES": str(log), "PYTHONPATH": str(HOOK)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
    rows = {row["kind"]: row for row in summed(log.read_text().splitlines(), "99", 1.0)}
    counts = {kind: (row["passes"], row["rows"], row["tokens"]) for kind, row in rows.items() if kind in ("read", "decode", "train")}
    assert counts == {"read": (1, 2, 10), "decode": (2, 4, 4), "train": (1, 2, 10)}
    assert rows["backward"]["passes"] == 1 and rows["everything"]["seconds"] == 1.0
