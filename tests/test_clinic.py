"""The parser of the house style accepts what the clinic wrote and nothing else."""

import pytest

from utils.clinic import URGENCIES, is_house_style, load_dialogues, load_triage, parse_triage

GOOD = "Urgency: SOON\nAdvice: Keep it dry.\nWatch for: pus; fever.\nSeek help: See a nurse within three days."


def test_every_answer_of_the_data_is_parsed_and_nothing_is_lost():
    for row in load_triage():
        parts = parse_triage(row["answer"])
        assert parts is not None, row["id"]
        lines = [f"Urgency: {parts.urgency}", f"Advice: {parts.advice}", f"Watch for: {'; '.join(parts.watch_for)}."]
        assert "\n".join([*lines, f"Seek help: {parts.seek_help}"]) == row["answer"]
        assert parts.urgency in URGENCIES


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "Keep it dry and see a nurse.",
        GOOD.replace("SOON", "LATER"),
        GOOD.replace("SOON", "soon"),
        GOOD.replace("Advice", "Tip"),
        GOOD.replace("Watch for: pus; fever.", "Watch for: pus."),
        GOOD.replace("pus; fever", "pus; fever; pain; redness"),
        GOOD.replace("pus; fever", "pus; "),
        GOOD.replace("three days.", "three"),
        GOOD.replace("\nWatch", "\n\nWatch"),
        GOOD + "\nUrgency: SOON",
        "Answer:\n" + GOOD,
        "\n".join(GOOD.split("\n")[::-1]),
    ],
)
def test_text_that_breaks_the_style_is_not_house_style(bad):
    assert parse_triage(bad) is None and not is_house_style(bad)


def test_parts_of_an_answer():
    assert is_house_style(f"  {GOOD}\n")
    assert parse_triage(GOOD) == ("SOON", "Keep it dry.", ("pus", "fever"), "See a nurse within three days.")


def test_splits_hold_all_rows_once():
    for load in (load_triage, load_dialogues):
        assert sum(len(load(split)) for split in ("train", "valid", "test")) == len(load())
    with pytest.raises(ValueError, match="'train', 'valid' or 'test'"):
        load_triage("dev")
