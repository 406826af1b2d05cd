"""What `make bench` says of its figures: ratios, missed aims, and the files it leaves. What it measures is not timed here."""

import json

import numpy as np
import pytest
import torch

from tools import bench, bench_engines
from tools.bench import Comparison, table, write
from tools.bench_engines_llm import answer
from tools.bench_models import run


def test_ratio_says_how_many_times_less_ours_takes():
    assert Comparison("index", plain=6.0, ours=2.0).ratio == 3
    assert Comparison("import", plain=None, ours=2.0).ratio is None


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        (Comparison("fast enough", 4.0, 1.0, aim=4), []),
        (Comparison("too slow", 3.0, 1.0, aim=4), ["below the aim of 4×"]),
        (Comparison("in time", None, 0.4, most=0.5), []),
        (Comparison("too late", None, 0.6, most=0.5), ["over 0.5 s"]),
        (Comparison("bought", 3.0, 1.0, aim=2, lost=0.6), ["0.60 points of nDCG lost"]),
    ],
)
def test_missed_aims_are_named(row, missed):
    assert row.missed == missed
    assert all(note in table([row]) for note in missed)


def test_figures_are_written_as_text_picture_and_json(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BUILD", tmp_path)
    monkeypatch.setattr(bench, "DATA", tmp_path / "data")
    rows = [Comparison("index", 6.0, 2.0, aim=2), Comparison("memory", 2.0, 1.0, aim=2, unit="GB"), Comparison("import", None, 0.1, most=1)]
    write(rows, keep=True)
    kept = next((tmp_path / "data" / "logs" / "bench").glob("*.json"))
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert [row["ratio"] for row in found["rows"]] == [3, 2, None]
    assert any("compute dtype" in line for line in found["machine"])
    assert (tmp_path / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "GB" in (tmp_path / "bench" / "bench.txt").read_text(encoding="utf-8")


def test_a_measuring_process_that_fails_shows_its_error():
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        run([bench.sys.executable, "-m", "tools.bench_models", "nothing"])


def test_engines_are_compared_in_turns_and_missing_ones_are_named(monkeypatch, capsys):
    def missing(module, feed, folder):
        raise ImportError("No module named 'nowhere'")

    def exact(module, feed, folder):
        return lambda feed: module(*(torch.from_numpy(feed[name]) for name in bench_engines.INPUTS)).detach().numpy()

    passages = bench_engines.handbook_passages()[:6]
    monkeypatch.setattr(bench_engines, "handbook_passages", lambda: passages)
    monkeypatch.setattr(bench_engines, "ENCODERS", {"none": missing, "torch in fp32": exact})
    monkeypatch.setattr(bench_engines, "ROUNDS", 1)
    [row] = bench_engines.encoder_rows("embedder", "minilm")
    assert row["engine"] == "torch in fp32" and row["agreement"] == pytest.approx(1) and row["seconds"] > 0
    assert "none: left out, No module named 'nowhere'" in capsys.readouterr().err


def test_answer_ends_at_its_end_mark():
    assert answer([5, 6, 2, 0, 0]) == [5, 6] and answer([5, 6]) == [5, 6]


def test_agreement_of_vectors_is_their_cosine_and_of_scores_their_correlation():
    assert bench_engines.agreement(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(0.5)
    assert bench_engines.agreement(np.array([[1.0], [2.0], [3.0]]), np.array([[-2.0], [-4.0], [-6.0]])) == pytest.approx(-1)
