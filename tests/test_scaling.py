"""Scale: made vectors, the measurement of growing indexes, embedding with several workers, and one recipe in two processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import make_encoder, make_llm
from tools import distance_cost, launch_qlora, made_vectors, scale_indexes
from tools import embed_many as embedding
from utils.models import load_embedder
from utils.runtime import DATA, ROOT

CONFIGS = ROOT / "tools" / "configs"
TEXTS = [f"Passage {number} says that {word} comes before noon." for number in range(8) for word in ("bread", "a train", "the post")]


def unit(array):
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def real():
    """Stand-ins for real embeddings: 60 and 20 unit vectors that differ in 8 of 32 directions."""
    draw = np.random.default_rng(0)
    mixing = draw.standard_normal((8, 32))
    return unit(draw.standard_normal((60, 8)) @ mixing), unit(draw.standard_normal((20, 8)) @ mixing)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def rows_of(log):
    with log.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# made vectors


def test_smaller_set_of_made_vectors_is_the_beginning_of_a_larger_one(real, monkeypatch):
    monkeypatch.setattr(made_vectors, "BLOCK", 64)
    larger, roots = made_vectors.grow(real[0], 300)
    assert all(np.array_equal(*pair) for pair in zip(made_vectors.grow(real[0], 100), (larger[:100], roots[:100])))
    assert np.array_equal(larger[:60], real[0]) and np.array_equal(roots[:60], np.arange(60))
    assert np.array_equal(made_vectors.grow(real[0], 40)[0], real[0][:40])
    assert not np.array_equal(made_vectors.grow(real[0], 300, seed=2)[0][60:], larger[60:])
    assert np.allclose(np.linalg.norm(larger, axis=1), 1, atol=1e-5) and larger.dtype == np.float32


def test_made_vectors_vary_earlier_ones_in_the_directions_of_real_ones(real):
    made, roots = made_vectors.grow(real[0], 6000)
    first = np.einsum("nd,nd->n", made[60:120], real[0][roots[60:120]])  # children of real vectors; later ones may be grandchildren
    assert np.median(first) == pytest.approx(made_vectors.COSINE, abs=0.06)
    assert np.median(np.einsum("nd,nd->n", made, real[0][roots])) < made_vectors.COSINE - 0.1
    outside = np.linalg.svd(real[0])[2][8:]  # the directions that real vectors never use
    assert np.abs(made @ outside.T).max() < 1e-3


# growing indexes


def save_real(folder, real):
    for name, vectors in zip(("passages", "questions"), real):
        made_vectors.save(folder / f"{name}.npy", vectors)


def test_measurement_writes_a_row_per_setting_and_goes_on_where_it_stopped(tmp_path, real):
    save_real(tmp_path, real)
    log = tmp_path / "log.csv"
    options = ["--log", str(log), "--folder", str(tmp_path)]
    scale_indexes.main(["--sizes", "400", "--kinds", "flat", "ivf-pq", *options])
    first = rows_of(log)
    points = [(row["kind"], row["setting"], row["candidates"]) for row in first]  # of ten cells, 16 and more cannot be visited
    assert points == [("flat", "0", "10")] + [("ivf-pq", "8", candidates) for candidates in ("10", "40", "160")]
    assert [row["recall_at_10"] for row in first if row["kind"] == "flat"] == ["1.0"]
    assert all(float(row["peak_mb"]) > float(row["before_mb"]) > 1 and float(row["p95_ms"]) >= float(row["p50_ms"]) > 0 for row in first)
    scale_indexes.main(["--sizes", "400", "700", "--kinds", "flat", "hnsw", *options])
    assert [untimed(row) for row in rows_of(log)[:4]] == [untimed(row) for row in first]
    assert [(row["kind"], row["passages"]) for row in rows_of(log)[4:]] == [("flat", "700")] + [("hnsw", "400")] * 4 + [("hnsw", "700")] * 4


def untimed(row):
    """The row without the times of its searches: these are measured anew when sizes are added."""
    return {name: value for name, value in row.items() if name not in ("p50_ms", "p95_ms")}


def test_sizes_are_searched_in_turn_from_the_indexes_kept(tmp_path, real):
    save_real(tmp_path, real)
    options = ["--log", str(tmp_path / "log.csv"), "--folder", str(tmp_path), "--kinds", "hnsw"]
    scale_indexes.main(["--sizes", "300", "600", *options])
    before = rows_of(tmp_path / "log.csv")
    times = scale_indexes.search_in_turn("hnsw", [300, 600], tmp_path)
    assert [(row["passages"], row["setting"]) for row in times] == [(n, s) for n in (300, 600) for s in scale_indexes.SETTINGS["hnsw"]]
    timed = scale_indexes.with_times(before, times[:1])
    assert timed[0] == before[0] | times[0] and timed[1:] == before[1:]
    scale_indexes.index_file(tmp_path, "hnsw", 600).unlink()
    scale_indexes.main(["--sizes", "300", "600", *options])  # an index that is gone is built again, and its rows stay single
    assert sorted(map(place_of, rows_of(tmp_path / "log.csv"))) == sorted(map(place_of, before))


def place_of(row):
    """What tells a row from all others."""
    return row["kind"], row["passages"], row["setting"], row["candidates"]


def test_size_counted_without_a_file_is_the_size_of_the_file(tmp_path, real):
    import faiss

    vectors = made_vectors.grow(real[0], 500)[0]
    for kind in scale_indexes.KINDS:
        index = scale_indexes.make(vectors, kind, {})
        faiss.write_index(index, str(tmp_path / kind))
        assert scale_indexes.saved_bytes(index) == (tmp_path / kind).stat().st_size


def test_rescoring_finds_what_codes_alone_miss(tmp_path, real):
    save_real(tmp_path, real)
    vectors, queries = made_vectors.made_vectors(2000, tmp_path)
    rows = scale_indexes.measure("ivf-pq", vectors, queries, scale_indexes.truth(vectors, queries))
    recall = {row["candidates"]: row["recall_at_10"] for row in rows if row["setting"] == 32}
    assert recall[10] + 0.05 < recall[40] <= recall[160] <= 1


def test_committed_log_holds_every_kind_once_per_size_and_setting():
    rows = rows_of(scale_indexes.LOG)
    points = [(row["kind"], int(row["passages"]), int(row["setting"]), int(row["candidates"])) for row in rows]
    assert len(set(points)) == len(points)
    assert {point[:2] for point in points} == {(kind, size) for kind in scale_indexes.KINDS for size in scale_indexes.SIZES}
    assert all(float(row["recall_at_10"]) == 1 for row in rows if row["kind"] == "flat")


def test_cost_of_a_comparison_is_measured_and_a_kept_graph_counted(tmp_path, real):
    save_real(tmp_path, real)
    options = ["--folder", str(tmp_path), "--log"]
    scale_indexes.main(["--sizes", "300", "--kinds", "hnsw", *options, str(tmp_path / "indexes.csv")])
    distance_cost.main(["--sizes", "300", "400", *options, str(tmp_path / "log.csv")])
    kept, other = rows_of(tmp_path / "log.csv")
    assert 128 <= int(kept["distances"]) <= 400 and 1 < float(kept["links"]) <= 80  # all its 300 vectors, and a few on upper layers
    assert (other["passages"], other["distances"], other["links"]) == ("400", "", "")
    assert all(float(row[name]) > 0 for row in (kept, other) for name in ("in_order_ns", "random_ns", "code_book_ns"))


def test_graphs_over_own_vectors_are_counted_and_found_right(tmp_path, real, monkeypatch, capsys):
    monkeypatch.setattr(distance_cost, "QUERIES", 20)
    np.save(tmp_path / "own.npy", np.concatenate([made_vectors.grow(real[0], 400)[0], real[1]]))
    options = ["--vectors", str(tmp_path / "own.npy"), "--sizes", "300", "400", "500"]
    distance_cost.main([*options, "--log", str(tmp_path / "log.csv")])
    rows = rows_of(tmp_path / "log.csv")
    assert [row["passages"] for row in rows] == ["300", "400"]  # 500 with their queries were not there
    assert all(128 <= int(row["distances"]) <= 500 and 1 < float(row["links"]) <= 80 for row in rows)
    assert all(0.95 < float(row["recall_at_10"]) <= 1 for row in rows)
    with pytest.raises(SystemExit):
        distance_cost.main(options)
    assert "give a --log of its own" in capsys.readouterr().err


def test_committed_costs_grow_with_memory_and_graphs_are_counted():
    rows = {int(row["passages"]): row for row in rows_of(distance_cost.LOG)}
    assert list(rows) == scale_indexes.SIZES and all(row["distances"] for row in rows.values())
    assert float(rows[1_000_000]["random_ns"]) > 2 * float(rows[1_000]["random_ns"])


def test_graphs_over_made_vectors_are_like_those_over_real_sentences():
    made, real = rows_of(distance_cost.LOG), rows_of(distance_cost.LOG.with_name("real_graphs.csv"))
    assert [row["passages"] for row in real] == [str(size) for size in scale_indexes.SIZES if size <= 300_000]
    for one, other in zip(made, real):
        assert float(one["distances"]) == pytest.approx(float(other["distances"]), rel=0.25)


# many documents


def test_without_ray_one_process_does_the_work_and_says_so(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"Ray is not installed.*pip install 'ray\[data\]'"):
        report = embedding.embed_many(TEXTS, tmp_path, workers=2, key=encoder, block=10, threads=None)
    assert (report.workers, report.blocks, report.embedded) == (1, 3, len(TEXTS))
    expected = np.array(load_embedder(encoder).embed_documents(TEXTS))
    assert np.allclose(embedding.read_vectors(tmp_path), expected, atol=1e-5)


def embed_alone(folder, encoder, texts=TEXTS, block=10):
    return embedding.embed_many(texts, folder, key=encoder, block=block, with_ray=False, threads=None)


def test_second_run_embeds_only_missing_blocks(tmp_path, encoder):
    embed_alone(tmp_path, encoder)
    vectors = embedding.read_vectors(tmp_path)
    (tmp_path / "part-00001.npy").rename(tmp_path / ".part-00001.npy.7.new")  # what a process killed while writing leaves
    with pytest.raises(ValueError, match="1 of 3 blocks are missing, the first is part-00001.npy"):
        embedding.read_vectors(tmp_path)
    report = embed_alone(tmp_path, encoder)
    assert (report.done_before, report.embedded) == (2, 10)
    assert np.array_equal(embedding.read_vectors(tmp_path), vectors)
    assert embed_alone(tmp_path, encoder).embedded == 0


def test_folder_of_another_job_is_refused(tmp_path, encoder):
    embed_alone(tmp_path / "vectors", encoder)
    with pytest.raises(ValueError, match="another job.*texts_sha256"):
        embed_alone(tmp_path / "vectors", encoder, TEXTS[::-1])
    with pytest.raises(ValueError, match="another job.*block: 10 there, 5 here"):
        embed_alone(tmp_path / "vectors", encoder, block=5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        embed_alone(tmp_path / "other", encoder)


def start_and_kill(folder, encoder):
    """Starts a run in blocks of one text and kills it once some blocks are there; returns how many."""
    code = "import json, sys, utils; from tools.embed_many import embed_many; embed_many(**json.loads(sys.argv[1]))"
    job = {"texts": TEXTS * 8, "folder": str(folder), "key": str(encoder), "block": 1, "with_ray": False}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(job)], cwd=ROOT, env=os.environ | {"PYTHONPATH": pythonpath()})
    deadline = time.monotonic() + 240
    while not list(folder.glob("part-*.npy")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(folder.glob("part-*.npy")))


def pythonpath():
    """The repository, and the guard that keeps every Python process of the tests on loopback."""
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def check_goes_on(folder, encoder, done, with_ray):
    report = embedding.embed_many(TEXTS * 8, folder, workers=2, key=encoder, block=1, with_ray=with_ray)
    assert 0 < done <= report.done_before < report.blocks == len(TEXTS) * 8
    assert report.embedded == report.blocks - report.done_before
    expected = np.array(load_embedder(encoder).embed_documents(TEXTS))
    vectors = embedding.read_vectors(folder)
    assert np.allclose(vectors, np.tile(expected, (8, 1)), atol=0.02)  # the killed process, or a worker, may have computed in bf16
    return report


def test_killed_run_goes_on(tmp_path, encoder):
    done = start_and_kill(tmp_path / "vectors", encoder)
    assert check_goes_on(tmp_path / "vectors", encoder, done, with_ray=False).workers == 1


@pytest.mark.slow
def test_killed_run_goes_on_with_two_ray_workers(tmp_path, encoder):
    if embedding.importlib.util.find_spec("ray") is None:  # not importorskip: Ray reads its settings when it is first imported
        pytest.skip("the optional package ray is not installed")
    done = start_and_kill(tmp_path / "vectors", encoder)
    assert check_goes_on(tmp_path / "vectors", encoder, done, with_ray=True).workers == 2
    assert not sys.modules["ray"].is_initialized()


def test_nothing_to_embed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 texts"):
        embedding.embed_many([], tmp_path)


# many GPUs


def test_rows_that_cannot_be_shared_out_evenly_are_refused():
    assert launch_qlora.rows_per_process(8, 2) == 4
    with pytest.raises(ValueError, match="8 rows per update do not divide among 3 processes"):
        launch_qlora.rows_per_process(8, 3)


def launch(folder, base, processes):
    log = folder / f"{processes}.csv"
    start = [sys.executable] if processes == 1 else [sys.executable, "-m", "accelerate.commands.launch"]
    start += [] if processes == 1 else ["--config_file", str(CONFIGS / "two_processes.yaml")]
    command = [*start, "-m", "tools.launch_qlora", "--base", str(base), "--rows-per-update", "4", "--steps", "4"]
    command += ["--max-length", "900", "--log", str(log), "--adapter", str(folder / f"adapter-{processes}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows_of(log)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(tmp_path):
    from safetensors.numpy import load_file

    base = make_llm(tmp_path / "base", max_position_embeddings=1024)
    one, two = (launch(tmp_path, base, processes) for processes in (1, 2))
    assert [(row["processes"], row["rows_per_process"]) for row in (one[0], two[0])] == [("1", "4"), ("2", "2")]
    losses = [np.array([float(row["loss"]) for row in rows]) for rows in (one, two)]
    assert len(losses[0]) == 4 and np.ptp(losses[0]) > 0.05  # rows differ, so another order of rows would show
    assert np.abs(losses[0] - losses[1]).max() < 0.01
    first, second = (load_file(tmp_path / f"adapter-{n}" / "adapter_model.safetensors") for n in (1, 2))
    for part in ("lora_A", "lora_B"):  # measured: they differ by 0.1 % and 0.7 %, rounding in bf16
        ours, theirs = (np.concatenate([weights[name].ravel() for name in sorted(first) if part in name]) for weights in (first, second))
        assert 0 < np.linalg.norm(ours) and np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(ours)


def parsed(name):
    """What accelerate makes of a configuration file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(CONFIGS / name)
    arguments = launch_command_parser().parse_args(["--config_file", path, "-m", "tools.launch_qlora"])
    return _validate_launch_command(arguments)[0]


def test_fsdp_configuration_means_sharded_weights_to_accelerate(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = parsed("fsdp2.yaml")
    assert arguments.use_fsdp and arguments.num_processes == 4
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy" and "SHARDED" in str(plugin.state_dict_type)


def test_deepspeed_configuration_means_zero_3_to_accelerate():
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    arguments = parsed("deepspeed_zero3.yaml")
    assert arguments.use_deepspeed and arguments.num_processes == 4 and arguments.zero3_init_flag is True
    file = ROOT / arguments.deepspeed_config_file
    assert HfDeepSpeedConfig(str(file)).is_zero3() and not HfDeepSpeedConfig(str(file)).is_offload()
    plugin = DeepSpeedPlugin(hf_ds_config=str(file))
    assert plugin.zero_stage == 3 and plugin.zero3_save_16bit_model


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_accelerate_knows_every_key_of_a_configuration(name, tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(CONFIGS / name)).num_processes >= 2
    broken = tmp_path / name
    broken.write_text((CONFIGS / name).read_text(encoding="utf-8") + "\nnumber_of_processes: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="number_of_processes"):
        load_config_from_file(str(broken))


def test_committed_losses_of_two_processes_are_those_of_one():
    rows = rows_of(DATA / "logs" / "scale" / "qlora_processes.csv")
    losses = {n: np.array([float(row["loss"]) for row in rows if (row["processes"], row["threads"]) == (n, "1")]) for n in ("1", "2")}
    assert len(losses["1"]) == len(losses["2"]) >= 8 and losses["1"][-1] < losses["1"][0] - 0.5
    assert np.abs(losses["1"] - losses["2"]).max() < 0.02


def test_configurations_are_found():
    assert {path.name for path in Path(CONFIGS).iterdir()} == {
        "two_processes.yaml", "fsdp2.yaml", "deepspeed_zero3.yaml", "deepspeed_zero3.json"
    }  # fmt: skip
