"""The training of the reranker's adapter, on a handful of rows: its lists are fair, it learns, and what it leaves loads everywhere."""

import csv
import gzip
import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import make_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tools.train_embedded import mining
from tools.train_embedded.evaluate_reranker import measured
from tools.train_embedded.ranking import CODE, Pool, Query, add_passage, asked_of_code, keywords, pools, sentence_pool, text_pool
from tools.train_embedded.train_reranker import ListMaker, batches, losses, scored
from utils import catalog, packaged
from utils.retrieval import tokenize

NAMES = ["Arbo", "Belin", "Corvu", "Dasha", "Elmo", "Fintu", "Goral", "Hesse", "Ilmar", "Jotun"]
GUIDE = """# Pipes

A pipe joins two programs so that one reads what the other writes, line by line, without a file between them at all.

To close a pipe early, stop the program that reads from it. The writer then gets a signal, and most programs end quietly when it comes.

```rust
fn open_valve(pipe: Pipe) -> Valve {
    let valve = Valve::new(pipe);
    valve
}
```
"""


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder laid out like the training data: ten planets, one guide, two judged questions."""
    folder = tmp_path_factory.mktemp("data")
    planets = []
    for moons, name in enumerate(NAMES, start=11):
        told = f"{name} is a cold world. It has {moons} moons and rings of ice."
        planets.append({"question": f"How many moons circle {name}?", "context": told, "answers": [f"{moons} moons"]})
    for source in ("squad_dutest", "squadshifts_amazon", "pubmedqa"):
        write(folder / f"qa/train/{source}.jsonl.gz", planets)
    for source in ("python__peps", "d2l-ai__d2l-en", "rust-lang__book", "tiangolo__fastapi"):
        write(folder / f"text/{source}.jsonl.gz", [{"path": "a.md", "text": GUIDE}] * 4)
    judged = [("who dug it ?", "Ann dug it .", 1), ("who dug it ?", "It is deep .", 0), ("who saw ?", "It rained .", 0)]
    write(folder / "rerank/wikiqa_train.jsonl.gz", [{"question": q, "passage": p, "label": label} for q, p, label in judged])
    return folder


class WordVectors:
    """Embeds each word as an axis of its own."""

    def __init__(self):
        self.axis = {}

    def token_embeddings(self, texts):
        places = [[self.axis.setdefault(word, len(self.axis)) for word in tokenize(text)] for text in texts]
        return [np.eye(4096, dtype=np.float32)[one] for one in places]


# --- queries ---------------------------------------------------------------------------------------------------------------------


def test_keywords_leave_out_what_nobody_types():
    assert set(keywords("How does the cache's size change with `top_k`?", random.Random(0)).split()) == {"cache", "size", "change", "top_k"}


def test_every_pool_has_queries_for_its_own_passages(data):
    made = pools(data, size=10)
    assert {pool.name for pool in made} == {"squad", "reviews", "mixed", "peps", "books", "rust", "docs", "code", "sentences"}
    for pool in made:
        assert all(0 <= query.gold < len(pool.passages) and query.text.strip() for query in pool.queries)


def test_a_sentence_that_becomes_a_query_leaves_its_passage():
    text = "Pipes join two programs into one. The first program writes its lines out. The second program reads all those lines."
    pool = Pool("docs", 1.0, [], [])
    for seed in range(20):
        add_passage(text, pool, random.Random(seed))
    cut = [(query, pool.passages[query.gold]) for query in pool.queries if query.text in text]
    assert cut and all(query.text not in passage and len(passage) < len(text) for query, passage in cut)


def test_technical_texts_are_asked_how_to(data):
    asked = {query.text for seed in range(8) for query in text_pool(data, "docs", 10, random.Random(seed)).queries}
    assert any(text.endswith("close a pipe early?") and text.startswith("How ") for text in asked)


def test_code_is_asked_for_by_what_it_defines():
    asked = [question for seed in range(10) for question in asked_of_code("fn open_valve() -> Valve {}", "", random.Random(seed))]
    assert len(asked) == 10 and all("open_valve" in question or "open valve" in question for question in asked)


def test_judged_sentences_keep_only_questions_that_one_answers(data):
    pool = sentence_pool(data, 10, random.Random(0))
    assert [(query.text, pool.passages[query.gold]) for query in pool.queries] == [("who dug it?", "Ann dug it .")]


# --- lists -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows():
    passages = [f"{name} has {n} moons." for n, name in enumerate(NAMES)]
    queries = [Query(f"How many moons has {name}?", n, {(n + 1) % 10}) for n, name in enumerate(NAMES)]
    return list(mining.mined(Pool("squad", 1.0, passages, queries), WordVectors())), passages


def test_mined_lists_begin_with_the_right_passage_and_spare_other_right_ones(rows):
    lists, passages = rows
    assert len(lists) == 10
    for n, row in enumerate(lists):
        assert row["passages"][0] == n and (n + 1) % 10 not in row["passages"] and len(set(row["passages"])) == len(row["teacher"])
        assert row["teacher"][0] == max(row["teacher"])


def test_a_query_whose_passage_is_not_found_is_left_out():
    pool = Pool("squad", 1.0, ["alpha beta", "gamma delta", "gamma gamma"], [Query("gamma delta", 0)])
    assert list(mining.mined(pool, WordVectors(), depth=2)) == []


def test_mined_lists_survive_writing_and_reading(tmp_path):
    made = [
        Pool("squad", 0.5, ["alpha one", "alpha two"], [Query("one", 0)]),
        Pool("code", 0.5, ["beta one", "beta two"], [Query("two", 1)]),
    ]
    mining.write(made, WordVectors(), tmp_path)
    lists, passages = mining.read(tmp_path)
    assert [(row["query"], passages[row["passages"][0]]) for row in lists] == [("one", "alpha one"), ("two", "beta two")]


@pytest.fixture
def words(tmp_path):
    return AutoTokenizer.from_pretrained(make_encoder(tmp_path / "encoder"))


class PairTokenizer:
    """The tiny tokenizer with the token types that MiniLM's has."""

    def __init__(self, words):
        self.words = words

    def __call__(self, first, second=None, **options):
        if second is None:
            return self.words(first, **options)
        ids = [self.words(a)["input_ids"] + self.words(b)["input_ids"] for a, b in zip(first, second)]
        types = [[0] * len(self.words(a)["input_ids"]) + [1] * len(self.words(b)["input_ids"]) for a, b in zip(first, second)]
        return {"input_ids": ids, "token_type_ids": types}


def test_drawn_lists_have_different_negatives_and_use_every_query(rows, words):
    lists, passages = rows
    maker = ListMaker(lists, passages, PairTokenizer(words), negatives=5)
    drawn = [maker.draw() for _ in range(10)]
    assert len({tuple(ids[0]) for ids, _, _ in drawn}) == 10, "each query comes once before any comes again"
    for ids, _, teacher in drawn:
        assert len(ids) == len(teacher) == 6 and len({tuple(one) for one in ids}) == 6 and teacher[0] == max(teacher)


def test_hard_negatives_are_drawn_more_often(words):
    row = {"pool": "code", "share": CODE, "query": "q", "passages": list(range(20)), "teacher": [0.0] * 20}
    maker = ListMaker([row], [str(n) for n in range(20)], PairTokenizer(words), negatives=6)
    drawn = Counter(place for _ in range(300) for place in maker.negatives_of(row))
    assert set(drawn) == set(range(1, 20)) and min(drawn[place] for place in range(1, 9)) > max(drawn[place] for place in range(9, 20))


def test_scores_do_not_depend_on_how_pairs_are_batched(rows, words, tmp_path):
    lists, passages = rows
    model = AutoModelForSequenceClassification.from_pretrained(make_encoder(tmp_path / "cross", reranker=True)).eval()
    batch = next(batches(ListMaker(lists, passages, PairTokenizer(words), negatives=3), lists=4))
    together = scored(model, batch)
    start, alone = 0, []
    for length in batch["lengths"].tolist():
        part = slice(start, start + length)
        alone.append(model(input_ids=batch["tokens"][None, part], token_type_ids=batch["types"][None, part]).logits.item())
        start += length
    assert together.tolist() == pytest.approx(alone, abs=1e-4) and together.shape == (16,)


def test_loss_is_least_for_a_model_that_agrees_with_label_and_teacher():
    class Oracle:
        def __init__(self, scores):
            self.scores = scores

        def __call__(self, input_ids, **rest):
            return type("Output", (), {"logits": torch.tensor([[self.scores[int(row[0])]] for row in input_ids])})

    batch = {"tokens": torch.arange(3), "types": torch.zeros(3), "lengths": torch.ones(3, dtype=torch.long)}
    batch["teacher"] = torch.tensor([[1.5, 0.0, -1.5]])
    agrees, disagrees = (losses(Oracle(scores), batch, 0.5) for scores in ([3.0, 0.0, -3.0], [-3.0, 0.0, 3.0]))
    assert agrees["loss"] < disagrees["loss"] and (agrees["right_first"], disagrees["right_first"]) == (1, 0)


# --- evaluation ------------------------------------------------------------------------------------------------------------------


def test_evaluation_pairs_each_system_with_fusion():
    def question(right):
        return {"ids": list("abc"), "right": [right], "fusion": [0.3, 0.2, 0.1], "late": [0.1, 0.9, 0.2], "cross": [0.0, 5.0, 1.0]}

    table = measured([question("b")] * 10)
    assert table["fusion alone"][:1] == [63.1] and table["cross-encoder"] == [100.0, 100.0, 100.0, 36.9, 36.9, 36.9]


# --- the whole way ---------------------------------------------------------------------------------------------------------------


def run(data, work, steps):
    command = [sys.executable, "-m", "tools.train_embedded.train_reranker", f"--data={data}", f"--work={work}", f"--steps={steps}"]
    done = subprocess.run([*command, "--lists=4", "--negatives=3", "--pool=10", "--learning-rate=2e-3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_training_lowers_the_loss_resumes_and_leaves_an_adapter(data, tmp_path, monkeypatch):
    run(data, tmp_path, steps=10)
    run(data, tmp_path, steps=60)
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert float(rows[-1]["label_loss"]) < 0.9 * float(rows[0]["label_loss"])
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    monkeypatch.setattr(packaged, "BUILD", tmp_path)
    from sentence_transformers import CrossEncoder

    folder = packaged.merged(catalog.get("minilm").path, tmp_path / "adapter", "smoke")
    scores = CrossEncoder(str(folder), device="cpu").predict([("How many moons circle Arbo?", f"{name} has moons.") for name in NAMES])
    assert scores.shape == (10,) and np.isfinite(scores).all()
