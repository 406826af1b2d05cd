"""The training of the course's adapter, on a handful of rows: its examples are what inference sees, and it learns."""

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
from itertools import count

import numpy as np
import pytest
import tiny_models
import torch
from langchain_core.documents import Document

from tools.train_embedded.calibrate import best_shift
from tools.train_embedded.examples import ExampleMaker, tokenized, without
from tools.train_embedded.exchanges import exchange, exchanged
from tools.train_embedded.material import material, neighbours, retrieved
from tools.train_embedded.reading import Passage, chunk, qa_passages, sentence_passages
from tools.train_embedded.train_lm import IGNORE, blend, collate, merged_linear
from tools.train_embedded.training import Plan, drawn, train
from tools.train_embedded.weigh_evidence import Judged, chosen, names_exchanged, scores
from utils.rag import ABSTENTION, rag_messages

FACTS = {
    f"Planet {name}": f"{size} moons" for name, size in zip(["Arbo", "Belin", "Corvu", "Dasha", "Elmo", "Fintu"], [2, 5, 7, 11, 13, 17])
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder laid out like the training data, with six tiny passages that differ in one fact."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "question": f"How many moons does {name} have?",
            "context": f"{name} is a cold world. It has {moons} and a thin ring of ice. Nobody lives there yet.",
            "answers": [moons],
            "source": "made",
        }
        for name, moons in FACTS.items()
    ]
    (folder / "qa/train").mkdir(parents=True)
    with gzip.open(folder / "qa/train/made.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows * 2)
    (folder / "text").mkdir()
    with gzip.open(folder / "text/made.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.write(
            json.dumps({"path": "a.md", "text": "# Heads\nA tokenizer is a program that cuts text into tokens for a language model. " * 8})
            + "\n"
        )
    return folder


@pytest.fixture(scope="module")
def passages(data):
    return qa_passages(data)


def test_questions_go_to_the_piece_that_holds_their_answer(data):
    assert all(answer in p.text for p in qa_passages(data) for _, answer in p.questions)


def test_chunks_keep_every_word_in_order():
    text = " ".join(f"Sentence number {i} has some words." for i in range(60)) + " " + "long " * 300
    assert " ".join(chunk(text)).split() == text.split()


@pytest.fixture
def maker(passages):
    return ExampleMaker(passages, neighbours(passages, count=3))


def test_an_example_reads_exactly_like_the_prompt_of_the_rag_chain(maker):
    tokenizer = tiny_models.tokenizer()
    example = next(e for e in iter(maker.draw, None) if e.gold is not None)
    prompt, answer = tokenized(example, tokenizer)
    chat = rag_messages(example.question, example.passages)
    assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(answer) == f"{example.answer} [{example.gold + 1}]<|end|>"


def test_the_gold_passage_holds_the_answer_and_the_others_do_not(maker):
    for example in (maker.draw() for _ in range(200)):
        holding = [i for i, text in enumerate(example.passages) if example.answer in text]
        assert holding == ([] if example.gold is None else [example.gold])


def test_unanswerable_questions_are_not_answered_by_the_passages_shown(maker):
    drawn = [maker.draw() for _ in range(300)]
    unanswerable = [e for e in drawn if e.gold is None]
    assert 0.2 < len(unanswerable) / len(drawn) < 0.4 and {e.answer for e in unanswerable} == {ABSTENTION}
    for example in unanswerable:
        asked = next((name for name in FACTS if name.lower() in example.question.lower()), None)
        assert "not" in example.question or not any(asked and f"{asked} is" in t and FACTS[asked] in t for t in example.passages)


def test_what_misleads_is_followed_by_its_like_that_is_answered(maker):
    pairs = 0
    while pairs < 30:
        misleading = maker.draw()
        if not maker.next:
            continue
        right, pairs = maker.draw(), pairs + 1
        assert misleading.gold is None and misleading.answer == ABSTENTION and maker.next is None
        home = right.passages[right.gold]
        assert right.answer in home and len(right.passages) == len(misleading.passages)
        assert [p for i, p in enumerate(right.passages) if i != right.gold] == [
            p for i, p in enumerate(misleading.passages) if i != right.gold
        ], "beside the gold passage both show the same"
        same_question = right.question.lower().rstrip("?") == misleading.question.lower().rstrip("?")
        assert not (same_question and home == misleading.passages[right.gold])


def test_a_word_exchanged_in_one_place_misleads_and_in_both_does_not():
    text = "A famous baker built the tower of Ombra in spring."
    passages = [Passage(text, "made", [("Who built the tower of Ombra?", "A famous baker")]), Passage("We met in Tolk.", "made", [])]
    maker = ExampleMaker(passages, neighbours(passages, count=1), seed=1)
    wrong, right = zip(*(pair for pair in (maker.misleading(*passages[0].questions[0], 0) for _ in range(200)) if pair[0]))

    def built(question):
        return question.removesuffix("?").replace("Who", "A famous baker") + " in spring."

    exchanged_in_both = [pair for pair in right if pair[1] != text]
    assert ("Who built the tower of Tolk?", text) in wrong and ("Who built the tower of Ombra?", text.replace("Ombra", "Tolk")) in wrong
    assert exchanged_in_both and all(built(question) == passage for question, passage in exchanged_in_both)
    assert not any(built(question) == passage for question, passage in wrong)


def test_words_are_exchanged_whole_and_both_ways_and_keep_a_capital():
    assert exchanged("First comes last: the lasting first.", "first", "last") == "Last comes first: the lasting last."
    assert exchanged("In May 1987 Mayer may go to Bath, Maine.", "May", "Bath") == "In Bath 1987 Mayer may go to May, Maine."


@pytest.mark.parametrize(
    ("question", "answer", "possible"),
    [
        ("When was Ombra built?", "1911", {("Ombra", "Tolk"), ("built", "destroyed")}),
        ("What did Tolk rule over?", "Ombra", set()),  # no other name fits: the only one is the answer's
        ("Which town had 300 walls?", "Ombra", {("300", "1911"), ("walls", "ships")}),
    ],
)
def test_what_is_exchanged_is_of_one_kind_and_no_part_of_the_answer(question, answer, possible):
    passage = "For long Ombra, built in 1911, had 300 walls and Tolk sailed ships."
    chance = random.Random(0)
    assert {exchange(question, passage, answer, passage, chance) for _ in range(200)} - {None} == possible


def test_a_search_for_the_question_brings_the_distracting_passages(passages):
    vectors = np.eye(len(passages), dtype=np.float32)
    queries = np.repeat(vectors + 0.5 * np.roll(vectors, 1, axis=1), [len(p.questions) for p in passages], axis=0)
    found = retrieved(passages, vectors, queries, count=1)
    homes = np.repeat(np.arange(len(passages)), [len(p.questions) for p in passages])
    assert (found[:, 0] == (homes + 1) % len(passages)).all(), "the nearest one that is not the question's own"
    maker = ExampleMaker(passages, neighbours(passages, count=3), found=found)
    chosen_from = [tuple(maker.similar(2, 0)) for _ in range(100)]
    assert 40 < chosen_from.count((3,)) < 80 and set(chosen_from) == {(3,), tuple(maker.near[2])}


def test_what_was_prepared_from_other_data_is_refused_by_name(data, tmp_path):
    args = argparse.Namespace(data=data, work=tmp_path / "work", neighbours=3)
    made = material(args)
    assert len(made.found) == sum(len(p.questions) for p in made.passages) and len(made.near) == len(made.passages)
    np.save(args.work / "found.npy", made.found[:-1], allow_pickle=False)
    with pytest.raises(SystemExit, match=r"found\.npy is of other data .* delete it and run again"):
        material(args)


def test_workers_draw_different_batches_from_one_process_and_the_same_every_time():
    def numbers(seed):
        yield from ({"tokens": torch.tensor([seed, step])} for step in range(2))

    def values(workers):
        return [batch["tokens"].tolist() for batch in drawn(numbers, 7, workers)]

    assert values(0) == [[7, 0], [7, 1]]
    assert values(2) == values(2) == [[7, 0], [1007, 0], [7, 1], [1007, 1]]


def test_a_passage_without_its_answer_keeps_the_rest():
    text = "The hall was built in 1911 by a baker. It burnt down later. " + "Nobody has built there since, and the ground lies open. " * 3
    left = without(text, "1911")
    assert left and "1911" not in left and left.split() == text.split(". ", 1)[1].split()
    assert without("Built in 1911. It burnt.", "1911") is None, "too little is left to read"


def test_turned_questions_ask_for_something_else(maker):
    assert maker.negate("Who did the king marry?") == "Who did the king not marry?"
    text = "Ombra came before Tolk."
    turned = {maker.turn("What was the first town?", text, "Ombra", text) for _ in range(30)}
    assert "What was the last town?" in turned and "What was the first town?" not in turned
    assert "When was Tolk built?" in {maker.turn("When was Ombra built?", "When Ombra stood, Tolk was built.", "", text) for _ in range(30)}


def test_wikiqa_gives_sentences_for_open_questions_and_keeps_what_nothing_answers(tmp_path):
    asked, other = "how do moons form ?", "who saw it ?"
    rows = [(asked, "Moons form from dust .", 1), (asked, "Dust is old .", 0), (other, "It rained .", 0)]
    (tmp_path / "rerank").mkdir()
    with gzip.open(tmp_path / "rerank/wikiqa_train.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"question": q, "passage": p, "label": label}) + "\n" for q, p, label in rows)
    first, second = sentence_passages(tmp_path)
    assert first.text == "Moons form from dust. Dust is old." and first.questions == [("how do moons form?", "Moons form from dust.")]
    assert second.unanswered == ["who saw it?"] and not second.questions


def test_only_the_answer_is_learnt():
    batch = collate([([5, 6, 7], [8, 9]), ([5, 6], [7])], pad=0)
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 8, 9, IGNORE], [IGNORE, 7, IGNORE, IGNORE, IGNORE]]
    assert torch.equal(batch["weights"] > 0, batch["labels"] != IGNORE) and batch["tokens"][1].tolist() == [5, 6, 7, 0, 0]
    assert batch["at"].tolist() == [2, 3, 6] and batch["weights"].flatten()[2] == 1 > batch["weights"].flatten()[3]


def test_merged_matrices_compute_what_peft_computes(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_models.make_llm(tmp_path / "base"))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    x = torch.randn(2, 3, layer.in_features)
    plain, merged = layer(x), merged_linear(layer, x)
    torch.testing.assert_close(merged, plain)
    parts = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    for one, other in zip(torch.autograd.grad(plain.square().sum(), parts), torch.autograd.grad(merged.square().sum(), parts)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_blend_lies_between_what_was_known_and_what_was_learnt():
    model = torch.nn.Linear(2, 2)
    start = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    learnt = model.weight.detach().clone()
    blend(model, start, 0.25)
    torch.testing.assert_close(model.weight.data, 0.75 * learnt)
    blend(model, start, 0.0)
    torch.testing.assert_close(model.weight.data, 0.75 * learnt)


def test_a_blend_without_an_adapter_to_start_from_is_refused(data, tmp_path):
    command = [sys.executable, "-m", "tools.train_embedded.train_lm", f"--data={data}", f"--work={tmp_path}", "--blend=0.5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "--init" in done.stderr and not (tmp_path / "adapter").exists()


def test_calibration_splits_answerable_from_unanswerable_and_prefers_to_answer():
    generator = np.random.default_rng(0)
    unanswerable = np.arange(400) % 2 == 0
    margin = generator.normal(np.where(unanswerable, 5.0, 3.0), 0.4)
    said = margin + best_shift(margin, unanswerable) >= 0
    assert said[unanswerable].mean() > 0.9 and said[~unanswerable].mean() < 0.05
    guess = generator.normal(3.0, 1.0, 400)  # a margin that knows nothing: answer nearly always
    assert (guess + best_shift(guess, unanswerable) >= 0).mean() < 0.5


@pytest.mark.parametrize("broken", [3, 10])
def test_weights_that_a_broken_loss_made_are_not_saved(tmp_path, broken):
    model = torch.nn.Linear(1, 1)
    values = [float("nan") if step == broken else 1.0 for step in range(1, 13)]
    batches = ({"tokens": torch.full((1, 1), value), "examples": torch.tensor(1)} for value in values)
    plan = Plan(tmp_path, learning_rate=0.1, minutes=1.0, steps=12)
    with pytest.raises(SystemExit, match="The loss is nan: lower --learning-rate"):
        train(model, lambda model, batch: {"loss": model(batch["tokens"]).square().sum()}, batches, plan)
    assert not (tmp_path / "checkpoint").exists()


def test_the_end_of_the_minutes_is_looked_at_before_it_is_saved(tmp_path, monkeypatch):
    model, plan = torch.nn.Linear(1, 1), Plan(tmp_path, learning_rate=0.1, minutes=1.0)
    clock = count(step=10.0)  # seconds: the run ends before its tenth step
    monkeypatch.setattr("tools.train_embedded.training.time.time", lambda: next(clock))
    batches = ({"tokens": torch.full((1, 1), float("nan")), "examples": torch.tensor(1)} for _ in range(9))
    with pytest.raises(SystemExit, match="The loss is nan"):
        train(model, lambda model, batch: {"loss": model(batch["tokens"]).square().sum()}, batches, plan)
    assert not (tmp_path / "checkpoint").exists()


def run(data, base, work, steps):
    command = [sys.executable, "-m", "tools.train_embedded.train_lm", f"--data={data}", f"--base={base}", f"--work={work}"]
    options = [f"--steps={steps}", "--tokens=2500", "--neighbours=3", "--learning-rate=0.01", "--sheets=0.4", "--kept=6"]
    done = subprocess.run(command + options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_search_has_its_say_in_abstaining_as_in_the_chain():
    answerable = np.array([True, True, True, False, False])
    strange = np.array([True, False, False, False, False])
    margin, evidence = np.array([3.0, 3.0, -1.0, 2.0, -9.0]), np.array([0.9, 0.6, 0.4, 0.55, 0.3])
    judged = Judged(answerable, margin, evidence, np.zeros(5, bool))
    alone = scores(judged, threshold=0.5, weight=0)
    assert alone["abstains_answerable"] == 1 and alone["abstains_unanswerable"] == 1
    weighed = scores(judged, threshold=0.5, weight=10)  # the first has 4 logits against a doubt of 3, the second 1
    assert weighed["abstains_answerable"] == pytest.approx(2 / 3) and weighed["balanced_accuracy"] == pytest.approx(2 / 3)
    named = Judged(answerable, margin, evidence, strange)  # no passage mentions a name of the first
    assert scores(named, threshold=0.5, weight=10)["abstains_answerable"] == 1
    surer = named._replace(margin=np.array([-0.2, -9, -9, -9, -9]))  # it would answer, but the name speaks against it with 10 × 0.05
    assert scores(surer, threshold=0.5, weight=10)["abstains_answerable"] == pytest.approx(2 / 3)
    assert scores(surer, threshold=0.5, weight=10, heeds_names=False)["abstains_answerable"] == pytest.approx(1 / 3)
    assert scores(named, threshold=0.5, weight=10, heeds_names=False) == weighed
    assert chosen({0: [0.6, 0.6], 10: [0.8, 0.7], 20: [0.75, 0.75], 30: [0.9, 0.5]}) == 10


def test_twins_ask_the_same_of_a_name_that_the_documents_never_mention():
    documents = [Document(page_content="NF4 stores weights in four bits. HNSW is a graph.")]
    rows = [
        {"question": "How many bits has NF4?", "answers": ["four"]},
        {"question": "What is a graph?", "answers": ["HNSW"]},
        {"question": "Who made the Muon optimizer?", "answers": []},
        {"question": "Is HNSW a graph?", "answers": ["yes"]},
        {"question": "How fast is HNSW on an H200?", "answers": ["fast"]},  # a name of its own that is never mentioned
    ]
    asked = [(row["question"], bool(row["answers"])) for row in names_exchanged(rows, documents)]
    assert asked == [
        ("How many bits has NF4?", True),
        ("How many bits has Muon?", False),
        ("Is HNSW a graph?", True),
        ("Is Muon a graph?", False),
    ]


def test_training_lowers_the_loss_resumes_and_leaves_an_adapter(data, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_models.make_llm(tmp_path / "base", max_position_embeddings=1024)
    run(data, base, tmp_path, steps=20)
    run(data, base, tmp_path, steps=60)
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [int(r["step"]) for r in rows] == [10, 20, 30, 40, 50, 60]
    assert float(rows[-1]["answer_loss"]) < 0.8 * float(rows[0]["answer_loss"])
    assert {p.suffix for p in (tmp_path / "adapter").iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    assert any(weight.abs().max() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


def test_rag_generator_starts_as_minilm_and_its_training_lowers_the_loss(data, tmp_path):
    command = [sys.executable, "-m", "tools.train_embedded.train_rag", f"--data={data}", f"--work={tmp_path}", "--steps=30"]
    options = ["--tokens=600", "--neighbours=3", "--vocabulary=600"]
    done = subprocess.run(command + options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    first = tmp_path / "model"
    assert (first / "model.safetensors").is_file()
    further = [f"--work={tmp_path / 'further'}", f"--init={first}", f"--out={tmp_path / 'second'}", "--steps=10", "--irrelevant=0.5"]
    done = subprocess.run(command + options + further, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [row] = csv.DictReader(open(tmp_path / "further" / "log.csv"))
    assert float(row["loss"]) < 0.8 * float(rows[0]["loss"])  # it went on from the first, not from MiniLM
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
