"""What runs on GitHub: workflows call what exists, are pinned and bounded; forms ask for what an answer needs; the citation is right."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.registry import ROOT, load_repository

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def test_push_weekly_and_site_are_there():
    assert {path.stem for path in WORKFLOWS} >= {"push", "weekly", "site"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_bounded_and_has_few_rights(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    assert all(1 <= job.get("timeout-minutes", 0) <= 90 for job in workflow["jobs"].values())
    assert not any("secrets." in str(step) for step in steps(path))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_commits_and_the_versions_stand_beside(path):
    lines = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert lines
    assert [line for line in lines if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", line[0]) or not re.search(r"# v\d", line[1])] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_what_exists(path):
    commands = "\n".join(step.get("run", "") for step in steps(path))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for line in re.findall(r"^([\w. /$()-]+):", makefile, re.MULTILINE) for target in line.split()}
    named = [target for target in re.findall(r"\bmake (\S+)", commands)]
    assert [target for target in named if target not in targets and target != ".venv/.made-from-requirements.lock"] == []
    modules = re.findall(r"-m (tools\.\w+)", commands)
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)
    assert all((ROOT / name).is_file() for name in re.findall(r"tests/[\w/]+\.py", commands))


def test_the_lock_that_workflows_make_is_the_one_of_the_makefile():
    assert "STAMP := $(VENV)/.made-from-requirements.lock" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_weekly_run_downloads_from_the_hub_and_asks_other_sites():
    jobs = read(ROOT / ".github" / "workflows" / "weekly.yml")["jobs"]
    asked = [step.get("env", {}).get("COURSE_HUB_TESTS") for step in jobs["hub"]["steps"] if "-m hub" in step.get("run", "")]
    assert asked == ["1"]
    assert any("--external" in step.get("run", "") for step in jobs["links"]["steps"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_form_is_one_that_github_takes(path):
    form = read(path)
    assert form["name"] and form["description"]
    kinds = {"input": {"label"}, "textarea": {"label"}, "dropdown": {"label", "options"}, "markdown": {"value"}}
    assert all(kinds[field["type"]] <= set(field["attributes"]) for field in form["body"])
    ids = [field["id"] for field in form["body"] if "id" in field]
    assert len(ids) == len(set(ids))


def test_notebook_form_asks_for_notebook_cell_and_environment():
    fields = {field["id"]: field for field in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "notebook.yml")["body"]}
    assert {"notebook", "cell", "environment"} <= set(fields)
    assert "python -m utils.runtime" in fields["environment"]["attributes"]["description"]
    assert all(field["validations"]["required"] for field in fields.values())


def test_the_repository_is_the_one_of_pyproject():
    slug = load_repository().slug
    files = ["CITATION.cff", "CHANGELOG.md", ".github/ISSUE_TEMPLATE/config.yml"]
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in files}
    assert {name: set(re.findall(r"github\.com/([\w-]+/[\w-]+)", text)) for name, text in texts.items()} == {name: {slug} for name in files}


def test_citation_has_what_the_format_asks_for_and_the_version_of_the_package():
    citation = read(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": "Grounded LLMs contributors"}]
    assert citation["version"] == project["version"] and citation["license"] == "Apache-2.0"


def test_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.index("## [Unreleased]") < text.index(f"## [{version}]")
    assert f"\n[{version}]: " in text and "\n[Unreleased]: " in text
