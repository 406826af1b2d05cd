"""Checkpoints of a training run without pickle: tensors in safetensors, everything else in JSON, a marker when all is written.

output/checkpoint-<step>/adapter_model.safetensors, adapter_config.json   the adapter (PEFT)
output/checkpoint-<step>/training.safetensors, training.json              optimizer, schedule, loss scaler, random generators
output/checkpoint-<step>/trainer_state.json                               steps and losses so far (transformers)
output/checkpoint-<step>/run.json                                         which run this is; written last, so it also means "whole"
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

RUN, TENSORS, VALUES = "run.json", "training.safetensors", "training.json"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes a nested state (dicts, lists, tuples, numbers, texts, tensors) to `folder`."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    values = _pack(state, tensors)
    save_file(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote, tensors on the CPU."""
    from safetensors.torch import load_file

    return _unpack(json.loads((folder / VALUES).read_text(encoding="utf-8")), load_file(folder / TENSORS))


def _pack(value: Any, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(one, tensors)] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(one, tensors) for one in value]}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"A checkpoint cannot hold {type(value).__name__}. Choose an optimizer that transformers offers by name.")


def _unpack(value: Any, tensors: dict[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(one, tensors) for key, one in content}
    return (tuple if kind == "tuple" else list)(_unpack(one, tensors) for one in content)


def random_state() -> dict[str, Any]:
    """The random generators of Python, NumPy and torch."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state()
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": gpu,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the generators where `random_state` found them."""
    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def mark_whole(checkpoint: Path, run: dict[str, Any]) -> None:
    """Declares a checkpoint complete, in one step."""
    fresh = checkpoint / (RUN + ".new")
    fresh.write_text(json.dumps(run, indent=1), encoding="utf-8")
    os.replace(fresh, checkpoint / RUN)


def checkpoint_folders(output: Path) -> list[Path]:
    """All checkpoints in `output`, the newest first."""
    return sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_whole(output: Path, run: dict[str, Any]) -> Path | None:
    """The newest complete checkpoint of `run` in `output`; half-written ones are deleted.

    Raises:
        ValueError: when the checkpoint belongs to a run with other data or settings; says which.
    """
    for folder in checkpoint_folders(output):
        if not (folder / RUN).is_file():
            shutil.rmtree(folder)
            continue
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
        differing = [name for name in run if found.get(name) != run[name]]
        if differing:
            pairs = "; ".join(f"{name}: {found.get(name)} there, {run[name]} here" for name in differing)
            raise ValueError(f"{folder} belongs to another run ({pairs}). Pass resume=False to start anew, or another output_dir.")
        return folder
    return None
