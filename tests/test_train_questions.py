"""Questions that a model makes for training: only well-formed ones stay, and only those that a reader answers alike."""

import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from tools.train_embedded.examples import ExampleMaker, chat_tokens
from tools.train_embedded.make_questions import Made, confirmed, to_ask, well_formed
from tools.train_embedded.material import material, neighbours
from tools.train_embedded.reading import Passage
from tools.train_embedded.train_lm import IGNORE, collate
from utils.rag import rag_messages

TEXT = "The lighthouse of Ombra was built by two brothers in the spring of 1911. Its lamp burns oil. Nobody lives there."


@pytest.mark.parametrize(
    "reply, kept",
    [
        ("two brothers\nWho built the lighthouse of Ombra?", True),
        ("1911\nWhen was the lighthouse built?", True),
        ("three sisters\nWho built the lighthouse of Ombra?", False),  # the passage does not say so
        ("oil\nWhat oil does the lamp burn?", False),  # the question gives the answer away
        ("oil\nWhat burns?", False),  # too short to be asked of anything
        ("oil\nWhat does its lamp burn", False),
        ("Nobody\nWho lives there now?", False),  # asked before
        ("What does its lamp burn?", False),
        ("\nWhat does its lamp burn?", False),
    ],
)
def test_only_well_formed_pairs_stay(reply, kept):
    passages = [Passage("", "text"), Passage(TEXT, "text", [("Who lives there now?", "Nobody")])]
    answer, _, question = reply.partition("\n")
    assert well_formed(reply, 1, passages) == (Made(1, question, answer) if kept else None)


def test_passages_with_few_questions_are_asked_about_dialogues_and_scraps_are_not():
    many = [(f"What is {i}?", "a") for i in range(3)]
    long = TEXT + " " + TEXT
    passages = [Passage(long, "squad_x"), Passage(long, "squad_x", many), Passage(long, "friendsqa"), Passage("A scrap.", "text")]
    assert to_ask([*passages, Passage(long, "text", many[:2])], random.Random(0)) in ([0, 4], [4, 0])


def test_a_pair_stays_only_where_the_reader_gives_the_very_same_answer(tmp_path):
    reader = AutoModelForCausalLM.from_pretrained(tiny_models.make_llm(tmp_path / "base", max_position_embeddings=1024))
    tokenizer, question = tiny_models.tokenizer(), "Who built the lighthouse of Ombra?"
    batch = collate([chat_tokens(rag_messages(question, [TEXT]), "two brothers [1]", tokenizer)], tokenizer.pad_token_id)
    optimizer, loss = torch.optim.Adam(reader.parameters(), lr=0.01), torch.tensor(1.0)
    while loss > 0.05:  # it learns this one answer by heart
        loss = torch.nn.functional.cross_entropy(reader(batch["tokens"]).logits[0], batch["labels"][0], ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = [Made(0, question, answer) for answer in ("brothers", "two brothers", "two brothers in")]
    assert confirmed(reader.eval(), tokenizer, [Passage(TEXT, "text")], pairs, 4000) == [pairs[1]]


def test_made_questions_take_their_share_and_have_their_passage(tmp_path):
    passages = [Passage(f"Ombra {i} has {i + 2} towers. It lies in the north.", "squad_x", [(f"Where is {i}?", "north")]) for i in range(5)]
    passages[2].made.append(("How many towers are in Ombra 2?", "4 towers"))
    maker = ExampleMaker(passages, neighbours(passages, count=2), found=np.zeros((5, 2), dtype=np.int32))
    asked = [maker.asked() for _ in range(400)]
    made = [(anchor, answer) for anchor, question, answer, _ in asked if question.startswith("How many")]
    assert set(made) == {(2, "4 towers")} and 0.03 < len(made) / len(asked) < 0.12


def test_the_command_trains_asks_checks_and_leaves_what_the_training_reads(tmp_path):
    rows = [
        {"question": f"How many moons has planet {n}?", "context": f"Planet {n} is cold. It has {n} moons. " + TEXT, "answers": [str(n)]}
        for n in range(20, 30)
    ]
    (tmp_path / "qa/train").mkdir(parents=True)
    with gzip.open(tmp_path / "qa/train/a.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row | {"source": "squad_made"}) + "\n" for row in rows)
    base, work = tiny_models.make_llm(tmp_path / "base", max_position_embeddings=1024), tmp_path / "work"
    common = [f"--data={tmp_path}", f"--work={work}", f"--base={base}", "--tokens=2500", "--steps=12", "--learning-rate=0.01"]
    for module, *options in (["train_lm", "--neighbours=3", "--kept=2"], ["make_questions", f"--init={work / 'adapter'}", "--batch=8"]):
        command = [sys.executable, "-m", f"tools.train_embedded.{module}", *common, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "10 passages with few questions" in done.stdout and (work / "asker/log.csv").is_file()
    made = json.loads((work / "made.json").read_text())
    (work / "made.json").write_text(json.dumps([*made, [0, "How old is it?", "20"]]))
    args = type("Args", (), {"data": tmp_path, "work": work, "neighbours": 3})
    assert material(args).passages[0].made[-1] == ("How old is it?", "20")
    (work / "made.json").write_text(json.dumps([[0, "How old is it?", "of other data"]]))
    with pytest.raises(SystemExit, match="made.json is of other data"):
        material(args)
