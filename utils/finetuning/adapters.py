"""Adapters on disk: written whole or not at all, in safetensors, with the identity of the base model they belong to.

    folder/adapter_config.json         PEFT's own, so that PEFT alone can load the folder
    folder/adapter_model.safetensors   the adapter's weights
    folder/base.json                   name, revision, digest and size of the base model, and the digest of the adapter's weights

An adapter is a difference: on another base it computes nonsense without any error. So its base is recorded and checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.finetuning.guards import quiet
from utils.finetuning.identity import BaseIdentity, base_identity

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE, WEIGHTS, CONFIG, MERGED = "base.json", "adapter_model.safetensors", "adapter_config.json", "merged.json"


class AdapterError(ValueError):
    """An adapter that cannot be used; the message says why and what to do."""


class WrongBaseError(AdapterError):
    """The adapter was trained on another base model."""


def carries_adapter(model: Any) -> bool:
    """True for a PEFT model; the base model inside it is none, although PEFT leaves traces there."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """`folder`, holding the adapter of `model`; it is written beside it and renamed, and replaces an adapter that was there.

    Raises:
        AdapterError: when `model` carries no adapter, or `folder` holds something else.
    """
    if not carries_adapter(model):
        raise AdapterError("This model carries no adapter. Train one with train_qlora, or load one with load_adapter.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file())):
        raise AdapterError(f"{folder} holds something that is no adapter. Give the adapter a folder of its own.")
    identity = base_identity(model)
    with written_whole(folder) as fresh:
        model.save_pretrained(str(fresh), safe_serialization=True, save_embedding_layers=False)
        (fresh / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
        config = json.loads((fresh / CONFIG).read_text(encoding="utf-8")) | {"base_model_name_or_path": identity.name}
        (fresh / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
        record = {"format": 1, "base": asdict(identity), "adapter_sha256": _sha256(fresh / WEIGHTS)}
        (fresh / BASE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return folder


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into; it becomes `folder` when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    fresh, old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.new"), _set_aside(folder)
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _recover(folder)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _recover(folder: Path) -> None:
    """Puts back what a process killed between two renames had set aside."""
    if not folder.exists() and _set_aside(folder).is_dir():
        os.rename(_set_aside(folder), folder)


def load_adapter(model: PreTrainedModel, folder: str | Path, trainable: bool = False, check_base: bool = True) -> PeftModel:
    """`model` with the adapter of `folder`, in eval mode unless `trainable`.

    check_base: False accepts a PEFT folder from elsewhere that does not say which weights it belongs to.

    Raises:
        WrongBaseError: when the adapter was trained on other weights; names both.
        AdapterError: for a folder that is missing, damaged or not safetensors, or a model that already carries an adapter.
    """
    from peft import PeftModel

    folder = Path(folder)
    _recover(folder)
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise AdapterError("This model carries an adapter already. Load the base model anew, or call .unload() and use what it returns.")
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder} lacks {CONFIG} or {WEIGHTS}: no adapter in safetensors is there. save_adapter(model, folder) writes one."
        )
    if check_base:
        _check(model, folder)
    with quiet():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def _check(model: Any, folder: Path) -> None:
    if not (folder / BASE).is_file():
        raise AdapterError(
            f"{folder} has no {BASE}, so its base model is unknown. Pass check_base=False if you know that it fits this one."
        )
    record = json.loads((folder / BASE).read_text(encoding="utf-8"))
    if record["adapter_sha256"] != _sha256(folder / WEIGHTS):
        raise AdapterError(f"{folder / WEIGHTS} was altered or is damaged: its SHA-256 is not the recorded one. Train or copy it again.")
    wanted = BaseIdentity(**record["base"])
    found = base_identity(model, with_digest=wanted.revision is None)
    if not found.same_weights(wanted):
        raise WrongBaseError(
            f"The adapter in {folder} was trained on {wanted}, but this model is {found}. Load that base model, or train again."
        )


def merge_adapter(model: PeftModel, folder: str | Path | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """The base model with the adapter added into its weights; saved to `folder` with the tokenizer, when given.

    A quantized base is dequantized first, to the weights the adapter was trained against: rounding the sum to NF4 once more would
    change the answers. The merged model is therefore as large as the unquantized one. `model` is used up.

    Raises:
        AdapterError: when `model` carries no adapter, or `folder` holds something else than an earlier merge.
    """
    if not carries_adapter(model):
        raise AdapterError("This model carries no adapter to merge. Load one with load_adapter(model, folder).")
    folder = Path(folder) if folder else None
    if folder and folder.exists() and not (folder / MERGED).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} holds something that is no merged model. Give the merged model a folder of its own.")
    record = {"format": 1, "base": asdict(base_identity(model))} if folder else None
    with quiet():
        merged = _with_conv1d(_dequantized(model).merge_and_unload()) if _is_quantized(model) else model.merge_and_unload()
    merged.requires_grad_(True)  # a plain model again; and matmul copies a frozen weight for every row of a batch that is a slice
    if folder:
        with quiet(), written_whole(folder) as fresh:
            merged.save_pretrained(fresh)
            if tokenizer is not None:
                tokenizer.save_pretrained(fresh)
            (fresh / MERGED).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return merged


def _is_quantized(model: Any) -> bool:
    return bool(getattr(model.get_base_model(), "is_quantized", False))


def _dequantized(model: Any) -> Any:
    """The same adapter on the dequantized base."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config, weights = model.peft_config[model.active_adapter], get_peft_model_state_dict(model, save_embedding_layers=False)
    dtype = model.get_base_model().dtype
    plain = model.unload().dequantize(dtype=dtype)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        plain.config.__dict__.pop(name, None)
    plain.is_quantized = plain.is_loaded_in_4bit = plain.is_loaded_in_8bit = False
    fresh = get_peft_model(plain, config)
    set_peft_model_state_dict(fresh, weights)
    return fresh.eval()


def _with_conv1d(model: Any) -> Any:
    """GPT-2 stores its matrices transposed, in Conv1D modules, which quantization has turned into linear layers."""
    import torch
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        template = type(model)(model.config)
    for name, module in template.named_modules():
        if isinstance(module, Conv1D) and isinstance(linear := model.get_submodule(name), torch.nn.Linear):
            module.weight, module.bias = torch.nn.Parameter(linear.weight.T.contiguous()), linear.bias
            model.set_submodule(name, module)
    return model


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
