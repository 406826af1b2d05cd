"""What is recorded in a running notebook is what is read from the saved file."""

import json

import nbformat
import numpy as np
import pytest
from IPython.utils.capture import capture_output
from nbclient import NotebookClient

from utils.results import MIME_TYPE, describe, read_results, record


def executed(*sources: str) -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    return NotebookClient(notebook, timeout=60, kernel_name="python3").execute()


def shown(**arguments) -> dict:
    """The data that `record` displays, without a kernel."""
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    with capture_output() as captured:
        record(**arguments)
    return captured.outputs[0].data


def test_saved_notebook_gives_back_what_was_recorded(tmp_path):
    notebook = executed(
        "from utils.results import record\nrecord('answer F1', 0.62, baseline=0.2, budget=0.6)",
        "print('no result here')",
        "record('speed', 1234.5, unit='tokens/s')",
    )
    nbformat.validate(notebook)
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook, path)
    results = read_results(path)
    assert results["answer F1"] == {"name": "answer F1", "unit": "", "value": 0.62, "baseline": 0.2, "budget": 0.6}
    assert results["speed"]["value"] == 1234.5 and results["speed"]["baseline"] is None
    assert read_results(nbformat.read(path, as_version=4)) == results


@pytest.mark.parametrize(("value", "kind"), [(np.float32(0.5), float), (np.int64(3), int), (np.array(2.0), float), (7, int)])
def test_numbers_of_numpy_become_plain(value, kind):
    data = shown(name="n", value=value)[MIME_TYPE]
    assert type(data["value"]) is kind and data["value"] == value
    json.dumps(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fast", [1, 2]])
def test_what_is_no_finite_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="recall: value"):
        record("recall", value)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"value": 0.6234, "baseline": 0.2}, "n: 0.623 (baseline 0.2, × 3.12)"),
        ({"value": 1234.5, "unit": "tokens/s"}, "n: 1,234 tokens/s"),
        ({"value": 12, "unit": "s", "budget": 60}, "n: 12 s (budget 60)"),
        ({"value": 0.5, "baseline": 0}, "n: 0.5 (baseline 0)"),
        ({"value": -0.5, "baseline": 0.25}, "n: -0.5 (baseline 0.25)"),
    ],
)
def test_line_reads_well(fields, line):
    assert describe({"name": "n", "unit": "", "baseline": None, "budget": None} | fields) == line


def test_reader_sees_the_line_as_plain_text():
    assert shown(name="seconds", value=1.5, unit="s")["text/plain"] == "seconds: 1.5 s"


def test_a_name_recorded_twice_is_refused():
    output = {"output_type": "display_data", "metadata": {}, "data": {MIME_TYPE: {"name": "twice", "value": 1}}}
    notebook = {"cells": [{"cell_type": "code", "outputs": [output, output]}, {"cell_type": "markdown"}]}
    with pytest.raises(ValueError, match="twice"):
        read_results(notebook)
