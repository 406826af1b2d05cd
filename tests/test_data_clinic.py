"""The clinic's dialogues hold what their data card says: house style, splits by scenario, no text twice."""

import json
import re
from collections import Counter, defaultdict

import pytest

from utils.clinic import parse_triage
from utils.runtime import DATA


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / "clinic" / name).read_text(encoding="utf-8").splitlines()]


TRIAGE, DIALOGUES = rows("triage.jsonl"), rows("dialogues.jsonl")
DEADLINE = {
    "EMERGENCY": r"^Call emergency services (right )?now\b",
    "URGENT": r"\b(today|tonight|hours?|now)\b",
    "SOON": r"\b(week|within|days|soon|tomorrow)\b",
    "SELF-CARE": r"\bif\b",
}


def test_every_answer_keeps_the_house_style():
    for row in TRIAGE:
        parts = parse_triage(row["answer"])
        assert parts, row["id"]
        assert re.search(DEADLINE[parts.urgency], parts.seek_help, re.I), (row["id"], parts)


def test_no_answer_names_a_dose():
    assert not [row["id"] for row in TRIAGE if re.search(r"\d ?(mg|ml|g|mcg|puffs|tablets)\b", row["answer"])]


def test_there_are_600_triage_rows_of_all_urgencies_and_300_dialogues():
    share = Counter(row["answer"].split("\n")[0][9:] for row in TRIAGE)
    assert len(TRIAGE) >= 600 and len(DIALOGUES) >= 300 and min(share.values()) > 0.15 * len(TRIAGE)


@pytest.mark.parametrize(("data", "keys"), [(TRIAGE, ("patient", "answer")), (DIALOGUES, ("dialogue", "summary"))])
def test_no_text_stands_twice_and_no_scenario_in_two_splits(data, keys):
    for key in ("id", *keys):
        assert len({row[key].lower() for row in data}) == len(data)
    splits = defaultdict(set)
    for row in data:
        splits[row["scenario"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values()) and {s for f in splits.values() for s in f} == {"train", "valid", "test"}


def test_every_number_and_name_of_a_summary_stands_in_its_dialogue():
    for row in DIALOGUES:
        for number in re.findall(r"\d+(?:[:.]\d+)?", row["summary"]):
            assert number in row["dialogue"], (row["id"], number)
        speakers = {turn.split(":")[0] for turn in row["dialogue"].split("\n")}
        assert 4 <= len(row["dialogue"].split("\n")) <= 9 and any(name in row["summary"] for name in speakers), row["id"]
