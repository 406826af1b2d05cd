"""What the course says about a machine, and how little it costs to ask."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata

import pytest
import torch

from utils import runtime


@pytest.fixture
def no_profile(monkeypatch):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpu_of(tmp_path, monkeypatch, no_profile):
    """Puts an nvidia-smi on the path that answers with the given line."""

    def install(line: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{line}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def run_python(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in {**runtime.OFFLINE, **runtime.QUIET, "COURSE_PROFILE": ""}}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=runtime.ROOT, env={**clean, **environment}, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("profile", runtime.PROFILES)
def test_course_profile_overrides_what_the_machine_suggests(monkeypatch, profile):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    assert runtime.choose_profile() == (profile, f"COURSE_PROFILE={profile}")


def test_wrong_profile_lists_the_right_ones(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "gpu")
    with pytest.raises(ValueError, match="embedded.*hub-cpu.*colab-gpu"):
        runtime.choose_profile()


def test_t4_gets_the_colab_profile(gpu_of):
    gpu_of("Tesla T4, 15360")
    profile, reason = runtime.choose_profile()
    assert profile == "colab-gpu"
    assert "Tesla T4 has 16.1 GB" in reason


def test_small_gpu_stays_embedded_and_says_why(gpu_of):
    gpu_of("GeForce GTX 1650, 4096")
    profile, reason = runtime.choose_profile()
    assert profile == "embedded"
    assert "less than the 14 GB" in reason


def test_driver_without_card_stays_embedded(gpu_of):
    gpu_of("No devices were found")
    assert runtime.choose_profile()[0] == "embedded"


def test_hidden_gpu_counts_as_none(gpu_of, monkeypatch):
    gpu_of("Tesla T4, 15360")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert runtime.visible_gpu() is None


def test_import_and_profile_need_no_heavy_library():
    heavy = "{'torch', 'transformers', 'langchain_core', 'numpy', 'huggingface_hub'}"
    code = f"import sys, utils, utils.catalog; utils.runtime.choose_profile(); print({heavy} & set(sys.modules) or 'none')"
    assert run_python(code, COURSE_PROFILE="embedded") == "none"


def test_import_of_utils_takes_under_half_a_second():
    code = "import time; start = time.process_time(); import utils; print(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(2)) < 0.5


def test_embedded_profile_switches_hub_and_telemetry_off():
    names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "ANONYMIZED_TELEMETRY", "DO_NOT_TRACK", "LANGSMITH_TRACING"]
    code = f"import os, utils; print(*(os.environ.get(name) for name in {names}))"
    assert run_python(code, COURSE_PROFILE="embedded") == "1 1 1 False 1 false"


def test_hub_profile_leaves_the_hub_on_and_telemetry_off():
    code = "import os, utils; print(os.environ.get('HF_HUB_OFFLINE'), os.environ['DO_NOT_TRACK'])"
    assert run_python(code, COURSE_PROFILE="hub-cpu") == "None 1"


def test_readers_own_settings_stay():
    code = "import os, utils; print(os.environ['HF_HUB_OFFLINE'])"
    assert run_python(code, COURSE_PROFILE="embedded", HF_HUB_OFFLINE="0") == "0"


@pytest.mark.parametrize(("flags", "dtype"), [({"avx2"}, torch.float32), ({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16)])
def test_bf16_only_where_the_cpu_computes_in_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    chosen, reason = runtime.choose_dtype("cpu")
    assert chosen == dtype
    assert "bf16" in reason


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_t4_gets_fp16_and_newer_gpus_bf16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    chosen, reason = runtime.choose_dtype("cuda")
    assert chosen == dtype
    assert ".".join(map(str, capability)) in reason


def test_detect_describes_this_machine(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    machine = runtime.detect()
    assert machine.profile == "embedded"
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.free_memory_gb > 0
    assert machine.dtype_reason


def test_colab_profile_without_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "colab-gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "COURSE_PROFILE=hub-cpu" in runtime.detect().profile_reason


def test_seed_makes_random_numbers_repeat():
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        runtime.seed_everything(3)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    assert draw() == draw()


def test_report_names_versions_and_choices():
    text = runtime.report()
    assert metadata.version("torch") in text  # torch.__version__ may name the CUDA version too
    assert "compute dtype" in text
    assert "profile" in text


def test_offline_is_read_from_the_environment(monkeypatch):
    start = time.perf_counter()
    for value, offline in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert runtime.is_offline() is offline
    assert time.perf_counter() - start < 1
