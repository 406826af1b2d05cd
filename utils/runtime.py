"""Which machine is this: device, compute dtype and why, free memory, profile, offline or not.

Knows the hardware and the environment variables of the course. Knows nothing about models. Importing it is cheap: torch is
imported only inside the functions that need it. `python -m utils.runtime` prints what was found. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# `python -m utils.runtime` finds this module already imported by the package; it runs a second time without harm.
warnings.filterwarnings("ignore", message="'utils.runtime' found in sys.modules", category=RuntimeWarning)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
BUILD = ROOT / "build"

PROFILES = {
    "embedded": "the models in data/models, no network",
    "hub-cpu": "small open models from the Hub, on the CPU",
    "colab-gpu": "an ungated model of up to 8 B parameters in NF4, on a CUDA GPU",
}
GPU_GB_FOR_COLAB_PROFILE = 14.0

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "ANONYMIZED_TELEMETRY": "False",  # Chroma
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_DISABLED": "true",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

PACKAGES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "langchain-core", "langchain-huggingface",
    "langchain-chroma", "chromadb", "qdrant-client", "faiss-cpu", "sentence-transformers", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What `detect` found, with the reasons in words. `free_memory_gb` is that of the device the models will use."""

    device: str
    compute_dtype: torch.dtype
    dtype_reason: str
    profile: str
    profile_reason: str
    free_memory_gb: float
    gpu: str | None
    in_colab: bool
    offline: bool


def choose_profile() -> tuple[str, str]:
    """The profile and the reason in words, without importing torch.

    Raises:
        ValueError: when COURSE_PROFILE names no profile; the message lists the right ones.
    """
    asked = os.environ.get("COURSE_PROFILE", "").strip()
    if asked:
        if asked not in PROFILES:
            choices = "; ".join(f"{name} ({what})" for name, what in PROFILES.items())
            raise ValueError(f"COURSE_PROFILE={asked!r} is not a profile. Set it to one of: {choices}. Or unset it.")
        return asked, f"COURSE_PROFILE={asked}"
    gpu = visible_gpu()
    if gpu is None:
        return "embedded", "no CUDA GPU is visible"
    name, memory_gb = gpu
    if memory_gb >= GPU_GB_FOR_COLAB_PROFILE:
        return "colab-gpu", f"{name} has {memory_gb:.1f} GB, at least the {GPU_GB_FOR_COLAB_PROFILE:.0f} GB this profile needs"
    return "embedded", f"{name} has {memory_gb:.1f} GB, less than the {GPU_GB_FOR_COLAB_PROFILE:.0f} GB of colab-gpu"


def visible_gpu() -> tuple[str, float] | None:
    """Name and total memory in GB of the first NVIDIA GPU, or None. Asks nvidia-smi, because importing torch takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, mebibytes = answer.splitlines()[0].rsplit(",", 1)
        return name.strip(), float(mebibytes) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):  # a driver without a card answers with an error
        return None


def go_offline() -> bool:
    """True when the profile is `embedded`: then the Hugging Face libraries are told not to try the network.

    Switches telemetry off in every profile. Only fills variables that are not set, and has to run before the first import of
    those libraries, which read them once.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if choose_profile()[0] != "embedded":
        return False
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    return True


def is_offline() -> bool:
    """True when the environment forbids the Hub (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def in_colab() -> bool:
    """True inside a Google Colab runtime."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def detect() -> Machine:
    """The machine this process runs on, with what the course chose for it and why."""
    import torch

    profile, profile_reason = choose_profile()
    has_cuda = torch.cuda.is_available()
    if profile == "colab-gpu" and not has_cuda:
        profile_reason += "; but this torch sees no GPU: install a CUDA build of torch or set COURSE_PROFILE=hub-cpu"
    device = "cuda" if has_cuda else "cpu"
    dtype, dtype_reason = choose_dtype(device)
    return Machine(
        device=device,
        compute_dtype=dtype,
        dtype_reason=dtype_reason,
        profile=profile,
        profile_reason=profile_reason,
        free_memory_gb=free_memory_gb(device),
        gpu=torch.cuda.get_device_name(0) if has_cuda else None,
        in_colab=in_colab(),
        offline=is_offline(),
    )


def choose_dtype(device: str) -> tuple[torch.dtype, str]:
    """The compute dtype for `device` and the reason in words."""
    import torch

    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bf16 tensor cores (8.0 and up)"
        return torch.float16, f"compute capability {major}.{minor} has no bf16 (that starts at 8.0), so fp16"
    if device == "mps":
        return torch.float16, "Apple's GPU computes in fp16"
    found = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16"})
    if found:
        return torch.bfloat16, f"this CPU multiplies bf16 matrices in hardware ({', '.join(found)})"
    # Measured on a CPU without them: bf16 matmul at 1-2 GFLOP/s against 140 GFLOP/s in fp32.
    return torch.float32, "this CPU has no bf16 arithmetic (avx512_bf16 or amx_bf16), where bf16 is far slower than fp32"


def cpu_flags() -> set[str]:
    """The instruction sets Linux reports for the CPU; empty elsewhere, which leads to fp32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def free_memory_gb(device: str = "cpu") -> float:
    """Free memory of `device` in GB; on a CPU, what the system or the container limit leaves, whichever is less."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0] / 1e9
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max": no limit
        pass
    return max(free, 0) / 1e9


def seed_everything(seed: int = 0) -> None:
    """Seeds Python, NumPy and torch (CPU and GPU)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Installed version per package of the course, "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def report() -> str:
    """The machine, the choices and the versions as readable text."""
    machine = detect()
    lines = [
        f"profile        {machine.profile}: {machine.profile_reason}",
        f"device         {machine.device}" + (f" ({machine.gpu})" if machine.gpu else f", {os.cpu_count()} cores"),
        f"compute dtype  {str(machine.compute_dtype).removeprefix('torch.')}: {machine.dtype_reason}",
        f"free memory    {machine.free_memory_gb:.1f} GB on {machine.device}",
        f"network        {'off: the Hub is not asked' if machine.offline else 'on'}" + (", in Colab" if machine.in_colab else ""),
        "",
        *(f"{package:24} {version}" for package, version in versions().items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    go_offline()
    print(report())
