# SPDX-License-Identifier: Apache-2.0
"""The mutation score in the header belongs to the code that it was measured on, or is not shown."""

import json
import re
import shutil

import pytest

from parity import mutation
from parity.harness import score
from parity.harness.case import collect
from parity.mutants import MUTANTS

FOUND = dict(killed=5, detectable=5, bugs=2, runs=7, seeds=1)


@pytest.fixture
def copy(tmp_path):
    for folder in score.DECIDING:
        shutil.copytree(score.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in score.FILES:
        shutil.copy(score.ROOT / file, tmp_path / file)
    return tmp_path


def test_the_score_of_this_state_is_shown(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(dict(state=score.state(), **FOUND)))
    assert "5/5 cells of 2 port bugs" in score.line(tmp_path / "s.json")


@pytest.mark.parametrize(
    "file",
    [
        "parity/mutants/layers.py",
        "parity/harness/gates.py",
        "ms_latte/models/mlp.py",
        "torch_ref/encoders/new.py",
        "parity/models/new.py",
        "parity/mutation.py",
        "ms_latte/checkpoint.py",
        "ms_latte/models/constants.py",
    ],
)
def test_another_state_has_no_score(copy, file):
    assert score.state(copy) == score.state()
    (copy / "s.json").write_text(json.dumps(dict(state=score.state(copy), **FOUND)))
    with (copy / file).open("a") as text:
        text.write("# changed\n")
    assert "not measured" in score.line(copy / "s.json", copy)


def test_what_only_tells_and_what_has_no_twin_do_not_matter(copy):
    for file in ("parity/harness/html.py", "ms_latte/training/log.py", "ms_latte/encoders/new.py"):
        (copy / file).write_text("# changed\n")
    assert score.state(copy) == score.state()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": 1}'])
def test_a_damaged_score_is_none(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    assert "not measured" in score.line(tmp_path / "s.json")
    assert "not measured" in score.line(tmp_path / "absent.json")


@pytest.mark.parametrize("readme", ["README.md", "ms_latte/README_CN.md"])
def test_the_readme_states_the_registry_and_the_score(readme):
    """What is printed there of a run is that of the stored score; bugs and probes are as many as there are."""
    text, stored = (score.ROOT / readme).read_text(encoding="utf-8"), json.loads(score.STORED.read_text())
    bugs = sum(not mutant.equivalent for mutant in MUTANTS.values())
    assert stored["bugs"] == bugs and stored["killed"] == stored["detectable"]
    cells = "{killed}/{detectable} cells of {bugs} port bugs · no alarm on the correct port in {runs} runs"
    ending = "{killed}/{detectable} of the detectable cells ({bugs} mutants)"
    assert [text.count(line.format_map(stored)) for line in (cells, ending)] == [1, 1]
    assert re.search(rf"\b{bugs} realistic ones|列出 {bugs} 个", text)
    probes = sum(bool(case.probe) for case in collect())
    assert re.search(rf"\b{probes} \*probes\*| {probes} 个\*探针\*", text)


@pytest.mark.parametrize(
    "words", [["--quick"], ["--file", "layers"], ["--dtype", "fp32"], ["gelu_erf_inside"]]
)
def test_a_part_is_no_score(words, capsys):
    with pytest.raises(SystemExit) as stop:
        mutation.main(["--store", *words])
    assert stop.value.code == 2 and "got a part of them" in capsys.readouterr().err
