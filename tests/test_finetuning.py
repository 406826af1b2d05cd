"""QLoRA on tiny models of real families: the right loss, runs that survive a kill and a full memory, adapters that know their base."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tiny_models import FAMILIES, make_llm

from utils import runtime
from utils.finetuning import (
    AdapterError,
    NonFiniteLossError,
    WrongBaseError,
    base_identity,
    load_adapter,
    merge_adapter,
    prepare_chat_dataset,
    qlora_config,
    save_adapter,
    state,
    train_qlora,
)
from utils.finetuning.lean import lean_adapters
from utils.memory import NotEnoughMemoryError
from utils.models import load_llm

ALL_FLAGS = runtime.cpu_flags()

ROOT = Path(__file__).resolve().parent.parent
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle"}


def chat_rows(count: int) -> list[dict[str, str]]:
    """Short rows of different lengths."""
    return [{"prompt": f"What is {n}?" + " Say it." * (n % 3), "completion": f"It is {n}." + " Yes." * (n % 4)} for n in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes a family's tiny checkpoint once per module."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make_llm(tmp_path_factory.mktemp("bases") / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A BERT-shaped model with a trained adapter on NF4, its tokenizer and the folder of the run."""
    loaded = load_llm(folders("bert"), "nf4")
    output = tmp_path_factory.mktemp("run")
    rows = data(loaded.tokenizer)
    model, report = train_qlora(
        loaded.model, loaded.tokenizer, rows, rows, config=qlora_config(4), output_dir=output, max_steps=6, learning_rate=1e-2
    )  # fmt: skip
    return model, loaded.tokenizer, output, report


def data(tokenizer: Any, count: int = 16) -> Any:
    return prepare_chat_dataset(chat_rows(count), tokenizer, 200).dataset


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def quick(loaded: Any, output: Path, rows: Any = None, **options: Any) -> Any:
    """A short run on `loaded`."""
    given: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "learning_rate": 5e-3, "config": qlora_config(4), **options}
    return train_qlora(loaded.model, loaded.tokenizer, rows or data(loaded.tokenizer), output_dir=output, **given)


# --- data ------------------------------------------------------------------------------------------------------------------------


def test_loss_counts_the_answer_and_its_end_and_nothing_else(folders):
    tokenizer = load_llm(folders("llama")).tokenizer
    [row] = prepare_chat_dataset([{"prompt": "What is NF4?", "completion": "Four bits."}], tokenizer, 200).dataset
    counted = [token for token, mask in zip(row["input_ids"], row["completion_mask"]) if mask]
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(counted).startswith("Four bits.<|end|>")
    assert tokenizer.decode(row["input_ids"]).startswith(prompt + "Four bits.")
    assert row["completion"] == [{"role": "assistant", "content": "Four bits."}]


def test_texts_messages_and_whole_conversations_give_the_same_row(folders):
    tokenizer = load_llm(folders("llama")).tokenizer
    user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}
    rows = [{"prompt": "Hello", "completion": "Good day"}, {"prompt": [user], "completion": [assistant]}, {"messages": [user, assistant]}]
    first, second, third = prepare_chat_dataset(rows, tokenizer, 200).dataset
    assert first == second == third


def test_rows_longer_than_the_context_are_named_not_cut(folders):
    tokenizer = load_llm(folders("llama")).tokenizer
    rows = [
        {"prompt": "short", "completion": "yes"},
        {"prompt": "long " * 100, "completion": "no"},
        {"prompt": "short", "completion": "no"},
    ]
    with pytest.warns(UserWarning, match=r"1 of 3 rows.*row 1 \("):
        dataset, report = prepare_chat_dataset(rows, tokenizer, 60)
    assert (report.rows, report.kept, [number for number, _ in report.too_long]) == (3, 2, [1])
    assert report.too_long[0][1] > 60 >= report.longest
    assert report.completion_tokens == sum(sum(row["completion_mask"]) for row in dataset)
    assert "row 1" in str(report)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hello"}, "Row 1 has no completion"),
        ({"prompt": "", "completion": "x"}, None),
        ({"completion": "x"}, "Row 1 has no prompt"),
        ({"prompt": "Hello", "completion": "  "}, "Row 1 has no completion"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "not by 'assistant'"),
    ],
)
def test_row_without_its_parts_is_an_error_that_names_the_row(folders, row, problem):
    tokenizer = load_llm(folders("llama")).tokenizer
    rows = [{"prompt": "Hello", "completion": "Good day"}, row]
    if problem is None:
        assert len(prepare_chat_dataset(rows, tokenizer, 200).dataset) == 2
        return
    with pytest.raises(ValueError, match=problem):
        prepare_chat_dataset(rows, tokenizer, 200)


def test_no_row_that_fits_is_an_error(folders):
    with pytest.raises(ValueError, match="None of 1 rows fits into 3 tokens"):
        prepare_chat_dataset(chat_rows(1), load_llm(folders("llama")).tokenizer, 3)


def test_without_a_chat_template_the_answer_still_ends(folders):
    tokenizer = load_llm(folders("gpt2")).tokenizer
    tokenizer.chat_template = None
    [row] = prepare_chat_dataset([{"prompt": "Say it.", "completion": "It."}], tokenizer, 200).dataset
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode([token for token, mask in zip(row["input_ids"], row["completion_mask"]) if mask]) == "\n\nIt.<|end|>"


def test_template_that_closes_no_answer_gets_an_end(folders):
    tokenizer = load_llm(folders("llama")).tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    [row] = prepare_chat_dataset(chat_rows(1), tokenizer, 200).dataset
    assert row["input_ids"][-1] == tokenizer.eos_token_id


def test_template_that_renders_the_prompt_differently_alone_is_reported(folders):
    tokenizer = load_llm(folders("llama")).tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n<think>{% endif %}")
    dataset, report = prepare_chat_dataset(chat_rows(2), tokenizer, 200)
    assert report.re_rendered == 2
    assert "It is 0." in tokenizer.decode([t for t, mask in zip(dataset[0]["input_ids"], dataset[0]["completion_mask"]) if mask])


# --- recipe ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "dtype", "mixed"), [((7, 5), torch.float16, "fp16"), ((8, 0), torch.bfloat16, "bf16")])
def test_gpu_decides_between_fp16_and_bf16(monkeypatch, capability, dtype, mixed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    config = qlora_config(device="cuda")
    assert (config.compute_dtype, config.quantization.bnb_4bit_compute_dtype, config.mixed_precision) == (dtype, dtype, mixed)
    assert f"{capability[0]}.{capability[1]}" in config.dtype_reason and mixed in str(config)


@pytest.mark.parametrize(("flags", "dtype", "mixed"), [(set(), torch.float32, "no"), ({"avx512_bf16"}, torch.bfloat16, "bf16")])
def test_cpu_without_fast_bf16_computes_in_fp32(monkeypatch, flags, dtype, mixed):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    config = qlora_config(device="cpu")
    assert (config.compute_dtype, config.mixed_precision) == (dtype, mixed)


def test_recipe_is_nf4_with_double_quantization_and_lora_on_all_linear_layers():
    config = qlora_config(rank=8, dropout=0.1)
    assert config.quantization.bnb_4bit_quant_type == "nf4" and config.quantization.bnb_4bit_use_double_quant
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout, config.lora.target_modules) == (8, 16, 0.1, "all-linear")
    assert qlora_config(rank=8, alpha=4, targets=["query"]).lora.lora_alpha == 4


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}])
def test_recipe_refuses_what_cannot_work(wrong):
    with pytest.raises(ValueError, match="rank of at least 1"):
        qlora_config(**wrong)


# --- training --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_learns(folders, tmp_path, family, quantization):
    loaded = load_llm(folders(family), quantization)
    before = logits(loaded.model)
    rows = data(loaded.tokenizer, 8)
    model, report = quick(loaded, tmp_path, rows, valid=rows, max_steps=5, batch_size=8, learning_rate=1e-2)
    assert report.valid_losses[-1][1] < report.valid_losses[0][1] - 0.02
    assert not torch.equal(logits(model), before)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert not model.training
    answer = model.generate(torch.arange(5, 15).unsqueeze(0), attention_mask=torch.ones(1, 10), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > 10


@pytest.mark.parametrize("family", ["bert", "qwen3", "gemma2"])
def test_loss_is_the_model_s_own_over_the_completion(folders, tmp_path, family):
    loaded = load_llm(folders(family))
    rows = data(loaded.tokenizer, 4)
    expected, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        labels = torch.where(torch.tensor([row["completion_mask"]]) == 1, ids, -100)
        with torch.inference_mode():
            predicted = loaded.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        counted = labels[0, 1:] != -100
        expected -= predicted[counted].gather(1, labels[0, 1:][counted].unsqueeze(1)).sum().item()
        tokens += int(counted.sum())
    _, report = quick(loaded, tmp_path, rows, max_steps=1, batch_size=4)
    assert report.losses[0][1] == pytest.approx(expected / tokens, rel=1e-4)


def is_packed(model):
    return any(getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False) for weight in model.parameters())


def test_a_4_bit_model_packed_for_inference_still_learns(folders, tmp_path):
    """bitsandbytes packs weights at the first inference on some CPUs, and the packed ones pass no gradient on."""
    losses = []
    for packed in (False, True):
        loaded = load_llm(folders("qwen2"), quantization="nf4")
        if packed and "avx512_bf16" in ALL_FLAGS:
            for layer in (one for one in loaded.model.modules() if hasattr(one, "support_avx512bf16_for_cpu")):
                layer.support_avx512bf16_for_cpu = True
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
            assert is_packed(loaded.model)
        rows = data(loaded.tokenizer, 4)
        losses.append([loss for _, loss in quick(loaded, tmp_path / f"{packed}", rows, max_steps=5, logging_steps=1).report.losses])
        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
        assert not is_packed(loaded.model)  # packing rounds once more: the trained model would no longer be the one that is saved
    assert losses[1] == pytest.approx(losses[0], rel=3e-3)  # packing rounds the scales of blocks


def test_trl_s_loss_is_trusted_only_where_nothing_stands_before_the_output_matrix(folders):
    from utils.finetuning.trainer import has_plain_head

    plain = {family: has_plain_head(load_llm(folders(family)).model) for family in FAMILIES}
    assert plain == {family: family != "bert" for family in FAMILIES}


def test_same_seed_gives_the_same_losses_and_another_seed_others(folders, tmp_path):
    options = {"config": qlora_config(4, dropout=0.1), "max_steps": 4, "logging_steps": 1}
    losses = [quick(load_llm(folders("llama")), tmp_path / f"{n}", seed=seed, **options).report.losses for n, seed in enumerate((0, 0, 1))]
    assert losses[0] == losses[1] != losses[2]


def test_accumulated_batches_count_like_one_large_batch(folders, tmp_path):
    runs = [
        quick(load_llm(folders("qwen2")), tmp_path / f"{size}", batch_size=size, accumulation=8 // size, logging_steps=1) for size in (8, 2)
    ]
    assert [loss for _, loss in runs[0].report.losses] == pytest.approx([loss for _, loss in runs[1].report.losses], rel=1e-4)


def test_report_shows_memory_before_and_after_speed_and_reasons(trained):
    *_, report = trained
    assert set(report.memory) == {"before", "peak", "after"}
    assert report.memory["before"]["weights"] == pytest.approx(report.memory["after"]["weights"])
    assert report.memory["peak"]["process"] > 50
    assert report.tokens_per_second > 0 and report.steps == 6
    assert "memory, MB   before" in str(report) and "fp32" in str(report)


def test_nan_loss_stops_before_it_reaches_the_weights(folders, tmp_path):
    loaded = load_llm(folders("llama"))
    clean = logits(loaded.model)
    steps = []

    def poison(module: Any, arguments: Any, output: Any) -> Any:
        steps.append(1)
        output.last_hidden_state = output.last_hidden_state * (math.nan if len(steps) >= 3 else 1)
        return output

    hook = loaded.model.model.register_forward_hook(poison)
    with pytest.raises(NonFiniteLossError, match="nan at step 3; the last good one was .* step 2.*learning rate"):
        quick(loaded, tmp_path, max_steps=6)
    hook.remove()
    assert torch.equal(logits(loaded.model), clean)  # the adapter is off again
    assert quick(loaded, tmp_path, resume=False).report.steps == 2


class FullMemory:
    """A hook that lets only `rows` rows per batch through.

    It stands on the decoder inside the model: peft 0.20 calls the model's `forward`, past hooks of the model itself.
    """

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error = rows, error

    def __call__(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if len(named["input_ids"]) > self.rows and module.training:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_full_memory_halves_the_batch_and_keeps_the_rows_per_update(folders, tmp_path, error):
    whole = quick(load_llm(folders("llama")), tmp_path / "whole", max_steps=3, batch_size=8, logging_steps=1)
    loaded = load_llm(folders("llama"))
    loaded.model.model.register_forward_pre_hook(FullMemory(2, error), with_kwargs=True)
    with pytest.warns(UserWarning, match="memory ran out with 8 rows"):
        _, report = quick(loaded, tmp_path / "split", max_steps=3, batch_size=8, logging_steps=1)
    assert (report.batch_size, report.accumulation, len(report.step_downs)) == (2, 4, 2)
    assert "2 rows × 4 batches per update, the same 8 rows" in str(report)
    assert [loss for _, loss in report.losses] == pytest.approx([loss for _, loss in whole.report.losses], rel=1e-4)


def test_memory_too_small_for_one_row_says_what_to_do(folders, tmp_path):
    loaded = load_llm(folders("llama"))
    loaded.model.model.register_forward_pre_hook(FullMemory(0, torch.OutOfMemoryError("CUDA out of memory.")), with_kwargs=True)
    with pytest.warns(UserWarning), pytest.raises(NotEnoughMemoryError, match="single row.*gradient_checkpointing=True"):
        quick(loaded, tmp_path, batch_size=3)


def test_another_error_is_not_mistaken_for_full_memory(folders, tmp_path):
    loaded = load_llm(folders("llama"))
    loaded.model.model.register_forward_pre_hook(FullMemory(2, RuntimeError("shapes do not match")), with_kwargs=True)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        quick(loaded, tmp_path)


def test_forward_of_the_model_is_its_own_again_after_training(folders, tmp_path):
    loaded = load_llm(folders("llama"))
    quick(loaded, tmp_path)
    assert "forward" not in loaded.model.__dict__


def test_lean_adapters_compute_what_peft_computes(folders):
    model = get_peft_model(load_llm(folders("qwen2"), "nf4").model, qlora_config(4).lora).float()
    for layer in (module for module in model.modules() if hasattr(module, "compute_dtype")):
        layer.compute_dtype = torch.float32  # so that rounding hides nothing
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    ids, found = torch.arange(5, 45).view(2, 20), []
    for active in (False, True):
        model.zero_grad()
        with lean_adapters(model, active):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append((loss.item(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.linalg.norm(found[0][1] - found[1][1]) < 1e-4 * torch.linalg.norm(found[0][1])


@pytest.mark.parametrize(("dropout", "short"), [(0.0, True), (0.1, False)])
def test_only_plain_adapters_are_computed_in_the_lean_way_and_only_for_the_time(folders, dropout, short):
    model = get_peft_model(load_llm(folders("qwen2"), "nf4").model, qlora_config(4, dropout=dropout).lora)
    adapters = [module for module in model.modules() if hasattr(module, "lora_A")]
    with lean_adapters(model):
        assert adapters and all(("forward" in module.__dict__) is short for module in adapters)
    assert not any("forward" in module.__dict__ for module in adapters)


def test_second_run_on_the_same_base_says_what_to_do(folders, tmp_path):
    loaded = load_llm(folders("llama"))
    quick(loaded, tmp_path / "one")
    with pytest.raises(ValueError, match="Load the base model anew"):
        quick(loaded, tmp_path / "two")


def test_gradient_checkpointing_changes_no_loss(folders, tmp_path):
    runs = [
        quick(load_llm(folders("llama"), "nf4"), tmp_path / str(on), gradient_checkpointing=on, logging_steps=1) for on in (False, True)
    ]  # fmt: skip
    assert [loss for _, loss in runs[0].report.losses] == pytest.approx([loss for _, loss in runs[1].report.losses], rel=1e-4)


# --- checkpoints -----------------------------------------------------------------------------------------------------------------


def run_in_process(base: Path, output: Path, die_at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.finetuning_run", str(base), str(output), str(die_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": python_path()})


def python_path() -> str:
    return os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


def result(process: subprocess.CompletedProcess[str]) -> tuple[int, list[float], float]:
    """(step resumed from, losses, last validation loss) that the process printed."""
    assert process.returncode == 0, process.stderr[-3000:]
    line = next(line for line in process.stdout.splitlines() if line.startswith("RESULT"))
    _, resumed, rest = line.split(" ", 2)
    losses, _, valid = rest.rpartition(" ")
    return int(resumed), ast.literal_eval(losses), float(valid)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_run_killed_in_mid_training_resumes_to_the_same_losses(folders, tmp_path):
    undisturbed = result(run_in_process(folders("bert"), tmp_path / "whole"))
    killed = run_in_process(folders("bert"), tmp_path / "killed", die_at=6)
    assert killed.returncode == -signal.SIGKILL
    half = tmp_path / "killed" / "checkpoint-5"  # a checkpoint that a kill left half-written
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = result(run_in_process(folders("bert"), tmp_path / "killed"))
    assert (undisturbed[0], resumed[0]) == (0, 4)
    assert len(undisturbed[1]) == len(resumed[1]) == 9
    assert resumed[1] == pytest.approx(undisturbed[1], abs=1e-6)  # the same machine adds in the same order
    assert resumed[2] == pytest.approx(undisturbed[2], abs=1e-6)
    assert not half.exists()


def test_checkpoints_hold_no_pickle(trained):
    _, _, output, _ = trained
    files = {path.name for path in output.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "training.safetensors", "training.json", "run.json"} <= files
    assert [name for name in files if Path(name).suffix in PICKLES] == []


def test_checkpoint_of_another_run_is_refused_with_the_difference(folders, tmp_path):
    quick(load_llm(folders("llama")), tmp_path)
    with pytest.raises(ValueError, match="learning_rate: 0.005 there, 0.001 here.*resume=False"):
        quick(load_llm(folders("llama")), tmp_path, learning_rate=1e-3)
    assert quick(load_llm(folders("llama")), tmp_path, learning_rate=1e-3, resume=False).report.resumed_from == 0


def test_finished_run_is_not_trained_again(folders, tmp_path):
    runs = []
    for _ in range(2):
        loaded = load_llm(folders("llama"))
        runs.append(quick(loaded, tmp_path, valid=data(loaded.tokenizer, 4)))
    first, again = (run.report for run in runs)
    assert (again.resumed_from, again.steps, again.losses) == (2, 2, first.losses)
    assert again.valid_losses[-1] == pytest.approx(first.valid_losses[-1])
    assert torch.equal(logits(runs[1].model), logits(runs[0].model))


def test_nested_state_comes_back_as_it_was(tmp_path):
    nested = {"a": [1, 2.5, None, True], 3: (torch.arange(4), {"deep": torch.ones(2, dtype=torch.uint8)}), "text": "x"}
    state.save_state(tmp_path, nested)
    back = state.load_state(tmp_path)
    assert back["a"] == nested["a"] and back["text"] == "x" and isinstance(back[3], tuple)
    assert torch.equal(back[3][0], torch.arange(4)) and back[3][1]["deep"].dtype == torch.uint8


def test_random_generators_go_on_where_they_were(tmp_path):
    import random

    import numpy as np

    state.save_state(tmp_path, state.random_state())
    first = random.random(), float(np.random.rand()), float(torch.rand(1))
    state.set_random_state(state.load_state(tmp_path))
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == first


# --- adapters --------------------------------------------------------------------------------------------------------------------


def test_adapter_comes_back_equal_from_a_plain_peft_folder(trained, folders, tmp_path):
    from peft import PeftModel

    model, *_ = trained
    folder = save_adapter(model, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert torch.equal(logits(load_adapter(load_llm(folders("bert"), "nf4").model, folder)), logits(model))
    assert torch.equal(logits(PeftModel.from_pretrained(load_llm(folders("bert"), "nf4").model, str(folder))), logits(model))
    assert str(tmp_path.parent) not in (folder / "adapter_config.json").read_text()


def test_adapter_refuses_another_base(trained, folders, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    other = make_llm(tmp_path / "other", "bert", initializer_range=0.2)
    with pytest.raises(WrongBaseError, match=r"was trained on bert \(SHA-256 .*but this model is other \(SHA-256"):
        load_adapter(load_llm(other).model, folder)
    resized = load_llm(folders("bert")).model
    resized.resize_token_embeddings(310)
    with pytest.raises(WrongBaseError, match="parameters"):
        load_adapter(resized, folder)


def test_adapter_takes_the_same_weights_from_another_folder_and_in_another_precision(trained, folders, tmp_path):
    import shutil

    folder = save_adapter(trained[0], tmp_path / "adapter")
    moved = shutil.copytree(folders("bert"), tmp_path / "moved")
    model = load_adapter(load_llm(moved).model, folder)
    assert torch.nn.functional.cosine_similarity(logits(model), logits(trained[0]), dim=-1).mean() > 0.8


def test_hub_model_is_known_by_name_and_revision(folders, tmp_path):
    import shutil

    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("a" * 40)
    shutil.copytree(folders("llama"), snapshot)
    identity = base_identity(load_llm(snapshot).model)
    assert (identity.name, identity.revision, identity.digest) == ("someone/small", "a" * 40, None)
    assert base_identity(load_llm(snapshot).model, with_digest=True).digest == base_identity(load_llm(folders("llama")).model).digest


def test_model_that_came_from_no_folder_is_known_by_its_weights():
    from tiny_models import config_values
    from transformers import AutoModelForCausalLM, LlamaConfig

    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(LlamaConfig(**config_values("llama"))))
    first, same, other = (base_identity(model) for model in models)
    assert first.same_weights(same) and not first.same_weights(other)


def test_damaged_adapter_is_refused(trained, folders, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AdapterError, match="altered or is damaged"):
        load_adapter(load_llm(folders("bert")).model, folder)


def test_adapter_of_unknown_origin_loads_only_when_asked(trained, folders, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    (folder / "base.json").unlink()
    with pytest.raises(AdapterError, match="check_base=False"):
        load_adapter(load_llm(folders("bert")).model, folder)
    assert load_adapter(load_llm(folders("bert")).model, folder, check_base=False)


def test_pickled_adapter_is_refused(trained, folders, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="safetensors"):
        load_adapter(load_llm(folders("bert")).model, folder, check_base=False)


@pytest.mark.parametrize("step", range(4))
def test_saving_that_is_interrupted_leaves_the_old_adapter_or_the_new_one(trained, folders, tmp_path, monkeypatch, step):
    """Each step on disk in turn is the last one that a killed process made."""
    from utils.finetuning import adapters

    folder = save_adapter(trained[0], tmp_path / "adapter")
    steps = iter(range(step + 1))

    class Killed(BaseException):
        pass

    def dying(action: Any) -> Any:
        def act(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise Killed
            return action(*arguments, **options)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(adapters.os, "rename", dying(os.rename))
        patch.setattr(adapters.shutil, "rmtree", dying(adapters.shutil.rmtree))
        try:
            save_adapter(trained[0], folder)
        except Killed:
            pass
    assert torch.equal(logits(load_adapter(load_llm(folders("bert"), "nf4").model, folder)), logits(trained[0]))


def test_failed_save_leaves_nothing_behind(trained, tmp_path, monkeypatch):
    from utils.finetuning import adapters

    def full_disk(path: Path) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(adapters, "_sha256", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(trained[0], tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_adapter_does_not_overwrite_other_files(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="folder of its own"):
        save_adapter(trained[0], tmp_path)
    with pytest.raises(AdapterError, match="folder of its own"):
        merge_adapter(trained[0], tmp_path)
    with pytest.raises(AdapterError, match="carries no adapter"):
        save_adapter(trained[0].get_base_model(), tmp_path / "new")


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_merged_model_answers_like_base_and_adapter(folders, tmp_path, family, quantization):
    loaded = load_llm(folders(family), quantization)
    model, _ = quick(loaded, tmp_path / "run", learning_rate=1e-2)
    expected = logits(model)
    merged = merge_adapter(model, tmp_path / "merged", loaded.tokenizer)
    assert all(weight.requires_grad for weight in merged.parameters()), "a plain model again"
    torch.testing.assert_close(logits(merged), expected, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(logits(load_llm(tmp_path / "merged").model), expected, atol=2e-3, rtol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_loaded_adapter_can_be_trained_on(trained, folders, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    loaded = load_llm(folders("bert"), "nf4")
    frozen = load_adapter(loaded.model, folder)
    with pytest.raises(ValueError, match="trainable=True"):
        train_qlora(frozen, loaded.tokenizer, data(loaded.tokenizer), output_dir=tmp_path / "run", max_steps=1)
    open_again = load_adapter(load_llm(folders("bert"), "nf4").model, folder, trainable=True)
    model, _ = train_qlora(
        open_again, loaded.tokenizer, data(loaded.tokenizer), output_dir=tmp_path / "run", max_steps=2, learning_rate=1e-2
    )
    assert not torch.equal(logits(model), logits(trained[0]))


def test_second_adapter_on_one_model_says_what_to_do(trained, tmp_path):
    folder = save_adapter(trained[0], tmp_path / "adapter")
    with pytest.raises(AdapterError, match="carries an adapter already"):
        load_adapter(trained[0], folder)


# --- the embedded model ----------------------------------------------------------------------------------------------------------


def test_embedded_model_trains_with_its_own_loss_and_stays_quiet(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    loaded = load_llm("small-lm", "nf4")
    rows = prepare_chat_dataset(chat_rows(4), loaded.tokenizer, 1024).dataset
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, report = quick(loaded, tmp_path, rows, max_steps=1)
    assert "own output head" in report.loss_from
    assert report.trainable_parameters < 0.05 * 17.5e6
    assert base_identity(model).name == "data/models/small-lm"
    assert capfd.readouterr().out == ""
