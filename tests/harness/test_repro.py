# SPDX-License-Identifier: Apache-2.0
"""The file of `python -m parity repro`: runs with both frameworks and with either, and nothing is left on failure."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from parity.bisection import bench, find_case
from parity.harness.inputs import Layout
from parity.harness.packing import ARRAYS, decode, encode, read
from parity.harness.runner import Session
from parity.repro import describe, find_tap, main, write

BLOCK = "import sys\nfor name in {names}: sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def session():
    session = Session()
    yield session
    session.pool.stop()


@pytest.fixture(scope="module")
def packed(session, tmp_path_factory):
    """One broken layer inside a net."""
    path = tmp_path_factory.mktemp("repro") / "gelu.zip"
    broken = bench(session, find_case("latte.Latte-class"), "fp32", mutant="gelu_erf")
    size = write(path, describe(broken, find_tap(broken, "blocks.0.mlp.act"), "gelu_erf"))
    assert size == path.stat().st_size < 2 << 20
    return path


def execute(path, absent=()):
    """Run the file as its receiver would: nothing of this repository on the path."""
    folder = path.parent / f"without-{'-'.join(absent)}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=list(absent)))
    done = subprocess.run(
        [sys.executable, path],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("absent", [(), ("torch",), ("mindspore",), ("torch", "mindspore")])
def test_the_file_runs_with_what_is_there(packed, absent):
    code, out = execute(packed, absent)
    assert code == 1 and "Traceback" not in out, out
    assert "port, as written: FAIL local" in out and "ms_latte/models/layers.py" in out
    assert ("port, here: FAIL local" in out) == ("mindspore" not in absent)
    assert ("control, here" in out and "truth, here" in out) == ("torch" not in absent)
    assert out.count("does not run here") == len(absent) and "/work" not in out
    assert out.count("same bits") == 3 - len(absent) - ("torch" in absent)


def test_unpacked_and_healthy_it_agrees(session, tmp_path):
    """A block with a layout among its arguments, out of a folder."""
    healthy = bench(session, find_case("latte.Latte-class"), "bf16")
    write(tmp_path / "block.zip", describe(healthy, find_tap(healthy, "blocks.1"), ""))
    with zipfile.ZipFile(tmp_path / "block.zip") as file:
        file.extractall(tmp_path / "block")
    code, out = execute(tmp_path / "block")
    assert code == 0 and "the port agrees" in out and out.count("same bits") == 3, out


def test_only_the_layers_own_weights_are_packed(session, packed):
    what, _ = read(packed)
    assert what["weights"] == {}
    healthy = bench(session, find_case("latte.Latte-class"), "fp32")
    weights = describe(healthy, find_tap(healthy, "blocks.2.mlp.fc1"), "")["weights"]
    assert sorted(weights) == ["blocks.2.mlp.fc1.bias", "blocks.2.mlp.fc1.weight"]


def test_values_survive_and_strangers_are_refused():
    value = {"a": (1, None, [2.5, "x"]), "l": Layout(2, 3, 5, "time"), "x": np.arange(6.0).reshape(2, 3)}
    arrays = {}
    back = decode(encode(value, arrays), arrays)
    assert back["a"] == value["a"] and back["l"] == value["l"] and np.array_equal(back["x"], value["x"])
    with pytest.raises(TypeError, match="object cannot be packed"):
        encode(object(), {})


def test_an_unknown_tap_names_its_neighbours(session):
    with pytest.raises(ValueError, match=r"near it: .*blocks\.0\.mlp\.act"):
        find_tap(bench(session, find_case("latte.Latte-class"), "fp32"), "blocks.0.mlp.akt")
    with pytest.raises(ValueError, match="it has no parts"):
        find_tap(bench(session, find_case("layers.GELU"), "fp32"), "act")


def test_an_unknown_case_costs_one_line(tmp_path, capsys):
    assert main(["latte.Latt-class:blocks.0", "--output", str(tmp_path / "x.zip")]) == 2
    error = capsys.readouterr().err
    assert "near it: latte.Latte-class" in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["layers.GELU:", "--output", str(tmp_path / "no" / "x.zip")]) == 2
    assert "choose another place" in capsys.readouterr().err


def test_nothing_half_written_stays(session, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError("no space left")

    healthy = bench(session, find_case("layers.GELU"), "fp32")
    what = describe(healthy, "#0", "")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "x.zip", what)
    assert list(tmp_path.iterdir()) == [] and ARRAYS.endswith(".npz")
