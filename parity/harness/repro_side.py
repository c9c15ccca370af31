# SPDX-License-Identifier: Apache-2.0
"""The script inside a file of `python -m parity repro`: runs one layer again and prints the comparison.

The file is a zip that Python runs (`python FILE.zip`, or the folder it was unpacked to). It holds the layer's inputs,
its weights, what port, control and truth gave where it was written, and the sources of both twins. It needs numpy
and either framework: what is not installed is left out, and said so.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness import gates
from parity.harness.case import Case
from parity.harness.packing import read


def rerun(side: Any, what: dict[str, Any], native: bool = False) -> list[np.ndarray]:
    """Results of the packed layer in one framework. Weights of other layers are zero: none is called."""
    port = side.package == "ms_latte"
    options = dict(form=what["form"], mutant=what["mutant"]) if port else {}
    if side.package == "torch_ref" and side.dtype != "fp64":
        options["products"] = what.get("products", {})
    shapes = side.build(Case(**what["case"]), rounding="native" if native else "emulated", **options)
    side.load(tensors={name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | what["weights"])
    name = what["tap"].rpartition("#")[0]
    if not name:
        return side.run(what["kwargs"], what["case"]["method"])
    return side.local([(name, what["args"], what["kwargs"])])[0]


def _sides(device: str, dtype: str):
    """(who, side, environment) of what is installed, and a line for what is not."""
    found, absent = [], []
    try:
        from parity.harness.mindspore_side import MindSporeSide

        side = MindSporeSide(device, dtype)
        found.append(("port", side, f"mindspore {side.ms.__version__} {device}"))
    except Exception as error:
        absent.append(f"the port does not run here: {(str(error).splitlines() or ['?'])[0]}")
    try:
        from parity.harness.torch_side import TorchSide, torch

        found.append(("control", TorchSide("CPU", dtype), f"torch {torch.__version__} CPU"))
        found.append(("truth", TorchSide("CPU", "fp64"), f"torch {torch.__version__} CPU float64"))
    except ImportError as error:
        absent.append(f"the reference does not run here: {error}")
    return found, absent


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison. Exit status 1 if the port disagrees, here or where the file was written."""
    parser = argparse.ArgumentParser(
        prog=f"python {Path(sys.path[0]).name}",
        description="Run one layer of a MindSpore port and of its torch reference on packed inputs and weights, and "
        "compare both with the float64 truth, here and where the file was written.",
    )
    parser.add_argument(
        "--device", default="CPU", help="device of the port: CPU or Ascend (not yet run on the device)"
    )
    options = parser.parse_args(arguments)
    what, _ = read(Path(sys.path[0]))
    dtype = what["dtype"]
    print(f"{what['title']}\n{what['written']}\n")
    results = {f"{who}, as written": values for who, values in what["results"].items()}
    found, lines = _sides(options.device, dtype)
    places = {name: "" for name in results}
    for who, side, place in found:
        name = f"{who}, here"
        results[name] = rerun(side, what, native=who == "port" and options.device != "CPU")
        places[name] = place
    truth = what["results"]["truth"]
    failed = []
    print(f"{'':<22}{'error':>9}{'max abs':>10}  (relative L2 from the float64 truth as written)")
    for name, values in results.items():
        who = name.partition(",")[0]
        same = all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(values, what["results"][who], strict=True)
        )
        control = what["results"]["control"]
        metrics = gates.merge(
            [gates.compare(c, r, t, dtype) for c, r, t in zip(values, control, truth, strict=True)]
            if who == "port"
            else [gates.compare(c, c, t, "fp64") for c, t in zip(values, truth, strict=True)]
        )
        note = (
            "" if name.endswith("written") else f"  {places[name]}, {'same bits' if same else 'other bits'}"
        )
        print(
            f"{name:<22}{metrics.e_c:>9.1e}{metrics.max_abs:>10.1e}{note}{metrics.problem and '  ' + metrics.problem}"
        )
        if who == "port":
            judged = _verdict(metrics, what)
            failed += [f"{name}: {judged}"] if judged else []
    print("\n" + "\n".join([*lines, *(failed or ["the port agrees"])]))
    return 1 if failed else 0


def _verdict(metrics: gates.Metrics, what: dict[str, Any]) -> str:
    """The reason of a failure by the rule of the gates, "" if there is none."""
    if what["dtype"] == "fp64":
        limit = gates.SEMANTIC["native" if what["form"] in gates.NATIVE_FORMS else "composed"]
        verdict, reason, *_ = gates.judge_semantics(metrics, metrics, limit)
    else:
        verdict, reason, *_ = gates.judge_local(metrics, what["level"], what["dtype"])
    return f"{verdict}, {reason}" if verdict.startswith("FAIL") else ""
