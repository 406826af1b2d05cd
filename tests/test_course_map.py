"""The map of the course shows the registry's chapters, each on the parts that exist."""

import dataclasses
import re

import pytest

from tools import course_map
from tools.course_map import CHAPTERS, PARTS, TARGET, description, draw, is_current, parts
from tools.registry import load_registry

REGISTRY = load_registry()


def test_map_is_current():
    assert is_current(), "run `make badges`"


def test_every_chapter_is_on_the_map_and_every_part_is_built_somewhere():
    built = {part for chapter in REGISTRY for part in parts(chapter)[0]}
    assert built == set(PARTS)
    assert all(set(a) & set(b) == set() for a, b in map(parts, REGISTRY)), "a part is built or used, not both"
    assert {chapter.id for chapter in REGISTRY} <= set(CHAPTERS)


def test_unknown_chapter_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="Notebook 77 is not on the map: say in tools/course_map.py"):
        parts(dataclasses.replace(REGISTRY[0], id="77"))


def test_unknown_part_is_refused(monkeypatch):
    monkeypatch.setitem(CHAPTERS, "01", ("telepathy", ""))
    with pytest.raises(ValueError, match="no part telepathy"):
        parts(REGISTRY[0])


def test_a_new_title_makes_the_map_out_of_date(monkeypatch):
    monkeypatch.setattr(course_map, "load_registry", lambda: [dataclasses.replace(REGISTRY[0], title="Another"), *REGISTRY[1:]])
    assert not is_current()


def test_drawing_is_small_repeatable_and_says_itself_in_words():
    first = draw(REGISTRY)
    assert first == draw(REGISTRY)
    assert len(first) < 200_000 and "<text" not in first  # outlines: the same letters on every machine
    assert description(REGISTRY)[:60] in first
    assert re.search(r"^\S", TARGET.read_text(encoding="utf-8"))
