# SPDX-License-Identifier: Apache-2.0
"""The benchmark takes turns, forms the ratios of neighbours, and its rows run; no figure is asserted."""

import argparse

import pytest

from parity import benchmark, benchmark_generate, benchmark_training
from parity.harness.full import full_case


def test_sides_take_turns_and_neighbours_make_the_ratio(capsys):
    asked = []

    def side(name, seconds):
        answers = iter(seconds)

        def ask(loops):
            asked.append((name, loops))
            return next(answers)

        return ask

    # The machine slows down threefold: the ratio of neighbours does not see it.
    asks = dict(
        torch=side("torch", [9, 1, 3, 3]),
        mindspore=side("mindspore", [9, 1.2, 3.6, 4.2]),
        diffusers=side("diffusers", [9, 2, 6, 6]),
    )
    rows = benchmark.in_turns(asks, "a row", 3, 5, goal=1.3)
    assert asked == [(name, loops) for loops in (1, 5, 5, 5) for name in asks]
    assert [(row.against, row.ratio, row.low, row.high) for row in rows] == [
        ("torch", pytest.approx(1.2), pytest.approx(1.2), pytest.approx(1.4)),
        ("diffusers", pytest.approx(0.6), pytest.approx(0.6), pytest.approx(0.7)),
    ]
    said = capsys.readouterr().out
    assert "goal 1.3: met" in said and "beside diffusers" in said
    benchmark.in_turns(dict(torch=lambda _: 1.0, mindspore=lambda _: 1.4), "a row", 1, 1, goal=1.3)
    assert "goal 1.3: MISSED" in capsys.readouterr().out


def test_rows_of_generation_run_beside_the_originals(capsys):
    pytest.importorskip("mindspore")
    words = ["--parts", "generate", "--tiny", "--repeat", "1"]
    assert benchmark.main([*words, "--only", "T5", "T2V"]) == 0
    said = capsys.readouterr().out
    shown = [line for line in said.splitlines() if " - " in line]
    names = ("sampling step, LatteT2V", "  beside diffusers", "T5 encoder", "  beside transformers")
    assert len(shown) == 4 and all(line.startswith(name) for line, name in zip(shown, names, strict=True)), (
        said
    )
    assert "cannot run" not in said and "goal" not in said


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        (["T5"], []),
        (["stages", "T5"], ["stages over a plain forward, torch", "stages over a plain forward, mindspore"]),
        (["all over a plain forward, torch"], ["all over a plain forward, torch"]),
    ],
)
def test_only_applies_to_tracing(monkeypatch, capsys, only, rows):
    monkeypatch.setattr(benchmark, "_prepare", lambda *_: {})
    sides = dict.fromkeys(benchmark.SIDES, lambda verb, **_: 1.0)
    options = argparse.Namespace(only=only, tiny=True)
    benchmark.tracing(sides, full_case("Latte-XL/2"), options)
    assert [line.rpartition(" ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        f"tracing {row}" for row in rows
    ]


def test_a_training_step_runs_with_and_without_recompute(capsys):
    pytest.importorskip("mindspore")
    assert benchmark.main(["--parts", "training", "--tiny", "--repeat", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("training step, Latte") == 1 and said.count("peak resident host memory") == 3, said
    assert said.count("blocks recomputed") == 1


def test_goals_are_those_of_the_published_table():
    jobs = [*benchmark_generate.jobs(), *benchmark_training.jobs()]
    goals = {job.case.name.partition(",")[0]: job.goal for job in jobs}
    assert goals.pop("training step") == 1.5
    assert goals == {"sampling step": 1.3, "VAE decode": 1.5, "temporal VAE decode": 1.5, "T5 encoder": 1.3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "expected a part of one of"),
        (["--parts", "vae"], "generate"),
        (["--parts", "operators", "--only", "XL-2"], "expected a part of one of 'linear"),
        (["--parts", "trace", "--only", "linear"], "expected a part of one of 'tracing stages over"),
        (["--repeat", "0"], "--repeat 0: expected 1 or more"),
        (["--repeat", "-1", "--parts", "net"], "--repeat -1: expected 1 or more"),
        (["--device", "GPU"], "invalid choice: 'GPU'"),
    ],
)
def test_a_wrong_choice_is_told(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_an_absent_device_is_one_line(capsys):
    pytest.importorskip("mindspore")
    assert benchmark.main(["--device", "Ascend", "--parts", "operators"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "emedy: install CANN" in said.err
    assert said.err.count("\n") == 1 and said.out == ""
