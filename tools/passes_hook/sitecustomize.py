"""Counts the passes of every transformers model in the processes that start with this folder on PYTHONPATH.

Python imports a module of this name by itself at start. Each outermost forward pass, and each backward pass, adds one line to the file
that COURSE_PASSES names: model class, parameters, kind, rows, width, seconds. Knows nothing of notebooks: `tools.model_passes` does.
"""

import importlib.util
import os
import sys
import threading
import time
from typing import Any

WATCHED = "transformers.modeling_utils"
state = threading.local()


def note(*fields: Any) -> None:
    """Adds one line; a line is short enough to be written whole, also by several processes."""
    with open(os.environ["COURSE_PASSES"], "a", encoding="utf-8") as stream:
        stream.write(",".join(map(str, fields)) + "\n")


def shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Returns rows and width of what the model reads; a decoder's ids count where there are some."""
    names = ("decoder_input_ids", "input_ids", "inputs_embeds")
    tensor: Any = next((kwargs[name] for name in names if kwargs.get(name) is not None), args[0] if args else None)
    return (int(tensor.shape[0]), int(tensor.shape[1])) if getattr(tensor, "ndim", 0) > 1 else (1, 1)


def counting(forward: Any) -> Any:
    """Returns `forward`, which notes the outermost of nested calls."""

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(state, "inside", False):
            return forward(self, *args, **kwargs)
        state.inside, start = True, time.perf_counter()
        try:
            return forward(self, *args, **kwargs)
        finally:
            state.inside = False
            kind = "train" if self.training else "read"
            note(type(self).__name__, self.num_parameters(), kind, *shape(args, kwargs), round(time.perf_counter() - start, 5))

    return counted


def install() -> None:
    """Puts the counters into transformers and torch, once both are imported."""
    import torch
    from transformers import PreTrainedModel

    model: Any = PreTrainedModel
    model.__call__ = counting(torch.nn.Module.__call__)
    backward = torch.autograd.backward

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return backward(*args, **kwargs)
        finally:
            note("", 0, "backward", 0, 0, round(time.perf_counter() - start, 5))

    torch.autograd.backward = timed


class Finder:
    """Lets transformers' module load as ever, then installs the counters."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns the module's own spec with a loader that calls `install` at its end; None for any other module."""
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec: Any = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            install_from(module)

        spec.loader.exec_module = exec_module
        return spec


def install_from(module: Any) -> None:
    """Installs the counters for the class that `module` has just defined."""
    sys.modules[WATCHED] = module
    install()


if os.environ.get("COURSE_PASSES"):
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
