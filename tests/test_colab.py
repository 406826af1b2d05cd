"""Colab's old torchao does not stop peft, and a newer one stays."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tiny_wheels import write_wheel
from tools.registry import ROOT

ADD_AN_ADAPTER = """
import torch
from peft import LoraConfig, get_peft_model

def add():
    try:
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    except ImportError as error:
        return str(error)
    return "adapter added"

print(add())
import utils
print(add())
"""


def run_beside_torchao(folder: Path, version: str, code: str) -> subprocess.CompletedProcess[str]:
    """Returns what became of `code` in a fresh Python that finds this version of torchao first."""
    with zipfile.ZipFile(write_wheel(folder, "torchao", version)) as wheel:
        wheel.extractall(folder / "site")
    start = f"import sys; sys.path[:0] = [{str(folder / 'site')!r}]\n"
    return subprocess.run([sys.executable, "-c", start + code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_adapter_is_added_beside_colabs_torchao_once_utils_is_imported(tmp_path):
    """The first line is the reason for `utils.colab`: when it differs, peft has changed, and the module can go."""
    refusal, answer = run_beside_torchao(tmp_path, "0.10.0", ADD_AN_ADAPTER).stdout.splitlines()
    assert "incompatible version of torchao" in refusal and answer == "adapter added"


@pytest.mark.parametrize(("version", "hidden"), [("0.10.0", True), ("0.15.0+cu128", True), ("0.16.0", False), ("1.0", False)])
def test_only_a_torchao_that_peft_refuses_is_hidden(tmp_path, version, hidden):
    code = "import importlib.util, utils; print(importlib.util.find_spec('torchao') is None)"
    assert run_beside_torchao(tmp_path, version, code).stdout == f"{hidden}\n"


def test_loaded_torchao_is_left_alone(tmp_path):
    code = "import torchao, utils; print(sys.modules['torchao'] is torchao)"
    assert run_beside_torchao(tmp_path, "0.10.0", code).stdout == "True\n"
