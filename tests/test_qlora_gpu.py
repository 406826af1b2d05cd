"""The 7B measurement runs whole on a tiny shape, writes what notebook 09 reads, and on a GPU shows what QLoRA is for."""

import csv
import math

import pytest

from tools import qlora_gpu
from utils.results import read_results
from utils.runtime import DATA, ROOT

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


def check_7b(found):
    """What QLoRA and packing are for: a fraction of the memory, and more tokens in the same time."""
    check_logs(found, 50, 15, 15)
    names = ("weights_mb", "peak_gpu_mb", "tokens_per_second")
    course, plain, lora = ({name: float(row[name]) for name in names} for row in found["summary"])
    assert course["weights_mb"] < 0.35 * lora["weights_mb"]
    assert course["peak_gpu_mb"] < lora["peak_gpu_mb"] and course["peak_gpu_mb"] <= plain["peak_gpu_mb"]
    assert course["tokens_per_second"] >= 1.3 * plain["tokens_per_second"]
    losses = [float(row["loss"]) for row in found["train"] if row["variant"] == VARIANTS[0]]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_speed_leaves_out_the_first_step_and_failed_attempts():
    made = {"losses": [(1, 2.0), (2, 1.9), (3, 1.8)], "tokens": 300.0, "seconds": [50.0, 9.0, 1.0, 1.0]}  # the first attempt failed
    assert qlora_gpu.tokens_per_second(made) == pytest.approx(100)
    with pytest.raises(SystemExit):
        qlora_gpu.parse(["--steps-beside", "1"])


@pytest.mark.gpu
@pytest.mark.slow
def test_qlora_at_7b_takes_a_fraction_of_the_memory_of_lora_in_16_bits(tmp_path):
    qlora_gpu.main(["--out", str(tmp_path)])
    check_7b(logs(tmp_path, "7b"))


def test_the_logs_that_notebook_09_replots_are_of_a_gpu_and_show_the_same():
    found = logs(DATA / "logs", "7b")
    check_7b(found)
    assert {row["device"] for row in found["summary"]} == {found["summary"][0]["device"]} != {"cpu"}


def test_the_calculator_of_notebook_09_meets_the_logged_run():
    computed = read_results(ROOT / "notebooks" / "09_qlora.ipynb")["qlora_7b_peak_memory_gb_computed"]
    assert computed["value"] == pytest.approx(computed["baseline"], rel=0.1)
