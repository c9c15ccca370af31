# SPDX-License-Identifier: Apache-2.0
"""`python -m parity other FILE`: judge a port that this project did not write. `parity/api.py` explains how."""

import argparse
import importlib.util
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from converters.errors import ConversionError
from parity.api import DTYPES, Comparison, ComparisonError, run
from parity.harness.words import LANGUAGES
from parity.options import wanted_dtypes


def examples() -> dict[str, Path]:
    """Definitions that come with the project: name -> file."""
    folder = Path(__file__).parent / "others"
    files = sorted(folder.glob("*.py"))
    return {
        file.stem: file for file in files if not file.stem.startswith("_") and not file.stem.endswith("_side")
    }


def definition(word: str) -> Comparison:
    """COMPARISON of a file, or of an example by name. Raises ComparisonError."""
    path = examples().get(word, Path(word))
    if not path.is_file():
        raise ComparisonError(f"{word}: no such file, nor one of the examples {', '.join(examples())}")
    title = f"_definition_{path.stem}"
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a script; workers inherit it
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None:
        raise ComparisonError(f"{word}: expected a Python file, *.py")
    sys.modules[title] = module = importlib.util.module_from_spec(
        spec
    )  # before it runs: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except ComparisonError as error:
        raise ComparisonError(f"{path}: {error}") from None
    except Exception as error:  # a user's file may raise anything
        raise ComparisonError(f"{path}: {type(error).__name__}: {error}") from None
    found = getattr(module, "COMPARISON", None)
    if not isinstance(found, Comparison):
        raise ComparisonError(
            f"{path}: expected COMPARISON = api.Comparison(...), found {type(found).__name__}"
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: all gates pass, 1: a disagreement, 2: the comparison could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m parity other",
        description="Judge a port of other people, a torch module against a MindSpore cell, by this project's gates.",
        epilog=f"Examples that come with the project: {', '.join(examples())}. "
        "Start with: cp parity/others/example.py mine.py; python -m parity other mine.py --dtype fp32",
    )
    parser.add_argument(
        "file", metavar="FILE", help="a file that defines COMPARISON, or the name of an example"
    )
    parser.add_argument("--device", default="CPU", help="device of the port: CPU or Ascend (default: CPU)")
    parser.add_argument("--dtype", default="", help="comma list of fp32, fp16, bf16 (default: the file's)")
    parser.add_argument("--gradients", action="store_true", help="gate G5 too, whatever the file says")
    parser.add_argument("--report", default="parity-report", metavar="DIR", help="where the report files go")
    parser.add_argument(
        "--lang", default="en", choices=LANGUAGES, help="language of the tables (default: en)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="all rows of all tables")
    options = parser.parse_args(arguments)
    try:
        comparison = definition(options.file)
        if options.dtype:
            comparison = replace(comparison, dtypes=tuple(wanted_dtypes(options.dtype, DTYPES)))
        if options.gradients:
            comparison = replace(comparison, gradients=True)
        command = ["python", "-m", "parity", "other", options.file]
        command += ["--dtype", ",".join(comparison.dtypes)] + (["--gradients"] if options.gradients else [])
        repeat = shlex.join(command)
        outcome = run(
            comparison, options.device, options.report, options.verbose, repeat, language=options.lang
        )
    except (ComparisonError, ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(outcome.lines))
    return 0 if outcome.passed else 1
