# SPDX-License-Identifier: Apache-2.0
"""`python -m parity repro TAP`: pack one layer into a small file that runs on another machine, for a bug report."""

import argparse
import dataclasses
import difflib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from converters.output import write_whole
from parity.bisection import DTYPES, FORMS, Bench, bench, check_mutant, find_case
from parity.harness.backends import ROOT, WorkerError
from parity.harness.packing import ARRAYS, DATA, encode
from parity.harness.runner import Session
from parity.harness.trace import fetch

# Sources that the script needs; everything else of parity judges, and stays at home.
SOURCES = ("ms_latte", "torch_ref", "converters", "parity/__init__.py", "parity/harness", "parity/mutants")
START = '''# SPDX-License-Identifier: Apache-2.0
"""python FILE.zip [--device CPU]: run the packed layer again. The script is parity/harness/repro_side.py."""

import sys

from parity.harness.repro_side import main

sys.exit(main())
'''


def find_tap(bench: Bench, name: str) -> str:
    """The tap of a name ("blocks.0.mlp.act", "blocks.0#1", "" for the output). Raises ValueError naming near ones."""
    tap = name if "#" in name else f"{name}#0"
    if tap not in bench.reference:
        known = [other.removesuffix("#0") for other in bench.reference if other != "#0"]
        near = difflib.get_close_matches(name, known, 4, 0.3) or known[:4]
        raise ValueError(
            f"no tap {name!r} in {bench.case.id}; near it: {', '.join(near) or 'none, it has no parts'}"
        )
    return tap


def describe(bench: Bench, tap: str, mutant: str) -> dict:
    """Everything that the file holds but the sources: case, call, the weights of this layer, the three results."""
    truth, control, port = bench.workers
    name = tap.rpartition("#")[0]
    record = bench.reference[tap]
    args, kwargs = (record.args, record.kwargs) if name else ((), bench.inputs)
    if name:
        answers = [worker("local", requests=[(name, args, kwargs)])[0] for worker in (port, control, truth)]
    else:
        call = dict(inputs=kwargs, method=bench.case.method)
        answers = [worker("run", **call) for worker in (port, control, truth)]
    state = control("state")
    weights = {
        key: value.astype(np.float32)
        for key, value in state.items()
        if not name or key.startswith(name + ".")
    }
    inside = any(other.startswith(name + ".") if name else other != "#0" for other in bench.reference)
    fields = {field.name: getattr(bench.case, field.name) for field in dataclasses.fields(bench.case)}
    label = tap.removesuffix("#0")
    versions = {**control.environment, **port.environment}
    written = ", ".join(
        f"{key} {versions[key]}" for key in ("torch", "mindspore", "numpy", "device") if key in versions
    )
    place = [_at_home(worker("sources").get(name, "?")) for worker in (control, port)]
    injected = f", with the injected bug {mutant}" if mutant else ""
    return dict(
        title=f"{bench.case.id}:{label} in {bench.dtype}, formulation {bench.form}{injected}\n"
        f"torch : {place[0]}\nport  : {place[1]}",
        written=f"written with {written}; weights of seed {bench.case.seed}",
        case={**fields, "inputs": {}},
        tap=tap,
        level="block" if inside else "op",
        dtype=bench.dtype,
        form=bench.form,
        mutant=mutant,
        products=bench.products,
        args=args,
        kwargs=kwargs,
        weights=weights,
        results={
            who: [np.array(fetch(item)) for item in values]
            for who, values in zip(("port", "control", "truth"), answers, strict=True)
        },
    )


def _at_home(place: str) -> str:
    """A place in the code as seen from the repository, not from the folder of this process."""
    path, colon, line = place.rpartition(":")
    return (
        f"{Path(path).resolve().relative_to(ROOT).as_posix()}:{line}"
        if colon and Path(path).is_file()
        else place
    )


def write(path: Path, what: dict) -> int:
    """The file, whole or not at all. Returns its size. Raises OSError for a place that cannot be written."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(encode(what, arrays), indent=1)
    data = io.BytesIO()
    np.savez(data, **arrays)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("__main__.py", START)
        file.writestr(DATA, text)
        file.writestr(ARRAYS, data.getvalue())
        for source in SOURCES:
            found = [ROOT / source] if source.endswith(".py") else sorted((ROOT / source).rglob("*.py"))
            for each in found:
                file.write(each, each.relative_to(ROOT).as_posix())
    write_whole(path, archive.getvalue())
    return path.stat().st_size


def main(arguments: list[str] | None = None) -> int:
    """Write the file and say its size. Exit status 2 for an unknown case, tap or bug, or an unwritable place."""
    parser = argparse.ArgumentParser(
        prog="python -m parity repro",
        description="Pack one layer into one small file: its inputs, its weights, the results of port, torch and the "
        "float64 truth, the sources of both twins and a script. `python FILE.zip` runs it again on any machine with "
        "numpy and either framework, and prints the comparison.",
        epilog="Example: python -m parity repro latte.Latte-class:blocks.0.mlp.act --dtype fp32 --mutant gelu_erf",
    )
    parser.add_argument(
        "tap", metavar="CASE:TAP", help="as a failure names it; CASE: alone is the whole target"
    )
    parser.add_argument(
        "--dtype", default="fp32", choices=DTYPES, help="fp64 is gate G1 (default: %(default)s)"
    )
    parser.add_argument("--device", default="CPU", choices=("CPU", "Ascend"), help="device of the port")
    parser.add_argument(
        "--form", default="", choices=FORMS, help="formulation set of the port (default: the device's)"
    )
    parser.add_argument(
        "--mutant", default="", metavar="NAME", help="inject a registered bug, to see a file with one"
    )
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="default: CASE-TAP-DTYPE.zip here")
    options = parser.parse_args(arguments)
    name, _, tap = options.tap.partition(":")
    session = Session(device=options.device)
    try:
        case = find_case(name)
        check_mutant(options.mutant)
        path = Path(options.output or f"{name}-{tap.replace('#', '.') or 'output'}-{options.dtype}.zip")
        if not path.resolve().parent.is_dir():
            raise ValueError(f"no folder {path.parent}; make it, or choose another place with --output")
        prepared = bench(session, case, options.dtype, options.form, options.mutant)
        size = write(path, describe(prepared, find_tap(prepared, tap), options.mutant))
    except (ValueError, TypeError, OSError, WorkerError) as error:
        print(f"error: {(str(error).splitlines() or ['?'])[0]}", file=sys.stderr)
        return 2
    finally:
        session.pool.stop()
    print(f"{path}: {size / 1024:.0f} KiB; run it with: python {path}")
    return 0
