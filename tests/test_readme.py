"""What README.md says is what the sources say: numbers with their intervals, profiles, assumptions, names."""

import csv
import re

import pytest

from tools import t4_estimate
from tools.registry import ROOT
from utils import catalog, runtime
from utils.reranking import MAX_SIM_EVIDENCE

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "data" / "models" / "course-lm" / "README.md").read_text(encoding="utf-8")
WITH_INTERVAL = re.compile(r"(\d+(?:\.\d)?)(?: %)? \((?:95 % interval )?(\d+(?:\.\d)?)–(\d+(?:\.\d)?)\)")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def words(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def intervals(text: str) -> list[tuple[int, ...]]:
    """(mean, low, high), rounded to whole points."""
    return [tuple(round(float(number)) for number in found) for found in WITH_INTERVAL.findall(text)]


def test_numbers_are_the_card_s_with_their_intervals():
    said = intervals(words(section("How good the answers are")))
    assert len(said) >= 8
    assert [one for one in said if one not in intervals(CARD)] == []
    handbook, closed_book = (mean for mean, _, _ in said[:2])
    assert f"lifts its F1 from {closed_book} to {handbook}" in words(section("Questions"))


def test_shares_declined_about_strange_names_are_the_log_s():
    with (runtime.DATA / "logs" / "evidence_weights.csv").open(encoding="utf-8", newline="") as file:
        log = [row for row in csv.DictReader(file) if row["questions"] == "handbook test, names"]
    shipped = [row for row in log if float(row["weight"]) == MAX_SIM_EVIDENCE["evidence_weight"]]
    share = {row["names"]: f"{100 * float(row['abstains_unanswerable']):.0f} %" for row in shipped}
    heeded, ignored = share["heeded"], share["ignored"]
    assert f"declines {heeded} of 75 questions, {ignored} without" in words(section("How good the answers are"))
    assert f"abstains on {heeded} of them, and on {ignored} where" in words(CARD)


@pytest.mark.parametrize("profile", runtime.PROFILES)
def test_profiles_load_what_the_catalog_says(profile):
    row = next(line for line in section("Three kinds of machine").splitlines() if line.startswith(f"| `{profile}`")).lower()
    llm, reranker = (catalog.default_key(kind, profile).lower() for kind in ("llm", "reranker"))
    assert llm in row
    assert (reranker in row) == (profile != "embedded")
    assert f"{runtime.GPU_GB_FOR_COLAB_PROFILE:.0f} GB" in section("Three kinds of machine")


def test_assumptions_about_a_t4_are_those_it_was_computed_with():
    text = words(section("Three kinds of machine"))
    assert (t4_estimate.BYTES_PER_SECOND, t4_estimate.OPERATIONS_PER_SECOND) == (0.6 * 320e9, 0.2 * 65e12)
    assert "60 % of its 320 GB/s and 20 % of its 65 TFLOPS" in text
    assert t4_estimate.SECONDS_PER_LAYER == 1e-3 and "1 ms of overhead per layer" in text
    assert t4_estimate.COLAB_CORES == 2 and "half as fast" in text


def test_readme_names_files_and_models_that_exist():
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    paths = [name for name in code if re.fullmatch(r"[\w./-]+(/|\.(?:py|md|toml|cff|lock))", name)]
    folders = (ROOT, ROOT / "notebooks")
    assert len(paths) > 8
    assert [name for name in paths if not any((folder / name).exists() for folder in folders)] == []
    assert catalog.get(re.search(r'load_llm\("([\w.-]+)"\)', README)[1]).kind == "llm"
    assert 6 <= len(re.findall(r"^\*\*[^*]+\?\*\* ", section("Questions"), re.MULTILINE)) <= 10
