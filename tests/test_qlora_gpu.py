"""The 7B measurement runs whole on a tiny shape, writes what notebook 09 reads, and on a GPU shows what QLoRA is for."""

import csv
import math

import pytest

from tools import qlora_gpu

VARIANTS = ["course, NF4", "plain TRL, NF4", "LoRA, bf16"]


def logs(folder, shape):
    return {
        kind: list(csv.DictReader((folder / f"qlora_{shape}_{kind}.csv").open(encoding="utf-8")))
        for kind in ("train", "summary", "generate")
    }


def check_logs(found, *steps):
    assert [(row["variant"], int(row["steps"])) for row in found["summary"]] == list(zip(VARIANTS, steps, strict=True))
    taken = [(variant, n + 1) for variant, count in zip(VARIANTS, steps) for n in range(count)]
    assert [(row["variant"], int(row["step"])) for row in found["train"]] == taken
    assert all(math.isfinite(float(row["loss"])) and float(row["seconds"]) > 0 for row in found["train"])
    assert all(float(row["tokens"]) > 0 and float(row["tokens_per_second"]) > 0 for row in found["summary"])
    assert {row["trainable"] for row in found["summary"]} == {found["summary"][0]["trainable"]}
    assert [(row["precision"], row["batch"]) for row in found["generate"]] == [(p, b) for p in ("bf16", "nf4") for b in ("1", "8")]


@pytest.mark.slow
def test_measurement_runs_whole_on_a_tiny_shape(tmp_path):
    short = ["--shape", "tiny", "--steps", "3", "--steps-beside", "2", "--length", "256", "--rank", "2", "--new-tokens", "4"]
    qlora_gpu.main([*short, "--out", str(tmp_path)])
    found = logs(tmp_path, "tiny")
    check_logs(found, 3, 2, 2)
    course, plain, lora = found["summary"]
    assert (course["packing"], plain["packing"]) == ("True", "False")
    assert float(course["weights_mb"]) == float(plain["weights_mb"]) < float(lora["weights_mb"])
    assert 0.75 * 1536 <= int(course["tokens"]) <= 1536  # three steps of two packed sequences, filled as far as whole rows fit


@pytest.mark.gpu
@pytest.mark.slow
def test_qlora_at_7b_takes_a_fraction_of_the_memory_of_lora_in_16_bits(tmp_path):
    qlora_gpu.main(["--out", str(tmp_path)])
    found = logs(tmp_path, "7b")
    check_logs(found, 50, 15, 15)
    course, plain, lora = ({name: float(row[name]) for name in ("weights_mb", "peak_gpu_mb")} for row in found["summary"])
    assert course["weights_mb"] < 0.35 * lora["weights_mb"]
    assert course["peak_gpu_mb"] < lora["peak_gpu_mb"] and course["peak_gpu_mb"] <= plain["peak_gpu_mb"]
    losses = [float(row["loss"]) for row in found["train"] if row["variant"] == VARIANTS[0]]
    assert sum(losses[-5:]) < sum(losses[:5])
