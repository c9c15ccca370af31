# SPDX-License-Identifier: Apache-2.0
"""`python -m parity record`: keep everything the judge asks torch, so that a machine without torch can compare."""

import argparse
import contextlib
import difflib
import importlib.metadata
import platform
import shutil
import tempfile
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from converters.command import Parser, guarded, parse_setting
from converters.output import writing_folder
from parity.harness import report
from parity.harness.backends import Pool, WorkerError
from parity.harness.behaviour import run_gradients
from parity.harness.bundle import MANIFEST, BundleError, Writer, digest, pack, reference_hash
from parity.harness.case import Case, collect
from parity.harness.full import file_case, full_case
from parity.harness.gates import PRODUCT_CAPS
from parity.harness.inputs import realize
from parity.harness.replay import RecordingPool, Sampler, weights_hash
from parity.harness.runner import Session, run_case
from parity.harness.trace import is_stage
from parity.options import wanted_cases, wanted_dtypes

DTYPES = ("fp64", "fp32", "fp16", "bf16")
EXAMPLES = """examples:
  python -m parity record --output bundle                      both thin nets, every layer, every dtype
  python -m parity record --output bundle --case '*' --dtype fp64,fp32
  python -m parity record --output bundle --size full --model Latte-XL/2 --dtype fp32 --sample 4096
  python -m parity record --output bundle --case latte.Latte-thin --taps stages --inside blocks.7 blocks.8
then, on the machine with MindSpore:
  python -m parity compare bundle --device Ascend
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    words = Parser(
        prog="python -m parity record",
        description="Run the torch side of the chosen cases and write a bundle: inputs by hash, weights by hash, "
        "float64 truth, same-precision control, versions. Needs torch, not MindSpore.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("-o", "--output", default="parity-bundle", metavar="DIR", help="default: %(default)s")
    words.add_argument("--force", action="store_true", help="replace the bundle that stands there")
    words.add_argument(
        "--case",
        nargs="+",
        default=(),
        metavar="ID",
        help="cases, or patterns such as 'blocks.*' (default: *-thin)",
    )
    words.add_argument(
        "--dtype", default=",".join(DTYPES), help="comma list (default: %(default)s; fp64 is gate G1)"
    )
    words.add_argument("--size", choices=("full",), help="full: a preset at its real size, with --model")
    words.add_argument("--model", default="", help="Latte-XL/2 ... or LatteT2V, with --size full")
    words.add_argument(
        "--frames", type=int, help="frames of a full-size net or of --checkpoint (default: its own)"
    )
    words.add_argument(
        "--checkpoint", default="", metavar="FILE", help="the whole net with the weights of a file"
    )
    words.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="configuration that the file lacks",
    )
    words.add_argument("--layout", default="", help="layout of --checkpoint, where its names fit several")
    words.add_argument(
        "--taps",
        choices=("all", "stages"),
        help="every layer, or depth-one stages only (default: as the case says)",
    )
    words.add_argument(
        "--inside",
        nargs="+",
        default=(),
        metavar="STAGE",
        help="with stages: keep the layers inside these too, so that a failure in them gets a name",
    )
    words.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="keep N values of each result and statistics of the whole (default 0: every value)",
    )
    words.add_argument(
        "--full", nargs="+", default=(), metavar="TAP", help="with --sample: taps, or patterns, kept whole"
    )
    words.add_argument(
        "--products",
        default="",
        metavar="FORMAT",
        help="for a device that rounds the inputs of its float32 products, as `parity fingerprint` shows there: "
        "HF32, TF32, fp16 or bf16, or MATMUL,CONV such as fp32,HF32 (default: plain torch)",
    )
    words.add_argument("--gradients", action="store_true", help="gate G5 of the chosen small nets too")
    return words


def chosen_cases(options: argparse.Namespace) -> dict[str, tuple[str, Case]]:
    """case id -> (where it comes from, the case). Raises ConversionError for a choice of nothing."""
    if options.checkpoint:
        overrides = dict(map(parse_setting, options.settings))
        found = [("file", file_case(options.checkpoint, options.layout or None, overrides, options.frames))]
    elif options.size == "full":
        model = options.model or "Latte-XL/2"
        try:
            found = [(f"full {model}", full_case(model, options.frames))]
        except ValueError as error:
            raise BundleError(str(error)) from None
    else:
        every = collect()
        patterns = options.case or ["*-thin"]
        nets = ", ".join(case.id for case in every if case.net)
        ids = [case.id for case in every]
        chosen = wanted_cases(patterns, ids, "this package", f"parts and nets, the nets are {nets}")
        found = [("parity.models", case) for case in every if case.id in chosen]
    if options.taps:
        found = [(origin, replace(case, taps=options.taps) if case.net else case) for origin, case in found]
    return {case.id: (origin, case) for origin, case in found}


def formats_of(text: str) -> dict[str, str]:
    """Formats of --products other than float32, by unit. Raises BundleError for unknown ones."""
    words = text.split(",") if text else ["fp32"]
    wrong = [word for word in words if word not in ("fp32", *PRODUCT_CAPS)]
    if wrong or len(words) > 2:
        expected = f"one or two of fp32, {', '.join(PRODUCT_CAPS)}: of matmul and of convolution"
        raise BundleError(f"--products {text}", got=", ".join(wrong or words), expected=expected)
    units = zip(("matmul", "conv"), (words[0], words[-1]), strict=True)
    return {unit: word for unit, word in units if word != "fp32"}


def inputs_of(case: Case) -> dict[str, str]:
    """name -> hash of every array that a case draws from its seed."""
    drawn = realize(case.inputs, case.seed)
    return {name: digest(value) for name, value in drawn.items() if isinstance(value, np.ndarray)}


def record(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill a folder; returns the manifest. Raises BundleError if torch does not agree with itself."""
    cases, dtypes = chosen_cases(options), wanted_dtypes(options.dtype, DTYPES)
    if not cases:
        raise BundleError("no case was chosen", remedy="see --help")
    writer = Writer(folder)
    pool = RecordingPool(writer, Sampler(options.sample, tuple(options.full)), tuple(options.inside))
    products = formats_of(options.products)
    session = Session(pool=pool, layout=options.layout, products=products)
    session.overrides = dict(map(parse_setting, options.settings))
    runs, described = [], {}
    _check_names(options, cases, dtypes)
    try:
        for id_, (origin, case) in cases.items():
            described[id_] = {"origin": origin, "frames": options.frames, "case": pack(case, digest)}
            described[id_]["inputs"] = inputs_of(case)
            if case.weights:
                described[id_]["weights"] = weights_hash(
                    None, case.weights, session.layout or None, session.overrides
                )
            for dtype in dtypes:
                if (case.dtypes and dtype not in case.dtypes) or (case.size == "full" and dtype == "fp64"):
                    continue
                runs.append(_record_run(session, case, dtype, run_case, "taps", writer))
                if options.gradients and case.net and case.size != "full" and case.taps == "all":
                    runs.append(_record_run(session, case, dtype, run_gradients, "gradients", writer))
        _require_fit(options.full, list(pool.sampler.seen), "--full", "tap of the chosen cases", None)
        if not runs:
            raise BundleError(
                f"none of the chosen cases is judged in {options.dtype}",
                remedy="choose another --dtype or --case",
            )
        torch = pool.get("torch", "CPU", dtypes[0]).environment
    finally:
        pool.stop()
    made = {name: str(value) for name, value in torch.items()}
    made |= {"python": platform.python_version(), "machine": platform.machine(), "ms-latte": version()}
    made["reference"] = reference_hash()
    facts = {
        "made_by": made,
        "sample": options.sample,
        "full": list(options.full),
        "inside": list(options.inside),
        **({"products": products} if products else {}),
    }
    return writer.finish({**facts, "cases": described, "runs": runs})


def _check_names(options: argparse.Namespace, cases: dict[str, tuple[str, Case]], dtypes: list[str]) -> None:
    """Raise BundleError for names of --inside and --full that fit no layer of the chosen cases, before hours of runs.

    Gradients have names of their own, so with --gradients --full is checked at the end alone.
    """
    if not (options.inside or options.full):
        return
    stages, layers = [], []
    pool = Pool()
    try:
        worker = pool.get("torch", "CPU", dtypes[0])
        for _, case in cases.values():
            worker("build", case=case, rounding="emulated", lazy=case.taps == "stages")
            layers += worker("lint")
            stages += [name for name in worker("lint") if is_stage(name)] if case.taps == "stages" else []
    finally:
        pool.stop()
    _require_fit(
        options.inside, stages, "--inside", "stage of a case that is compared by stages", "--taps stages"
    )
    if not options.gradients:
        _require_fit(options.full, layers, "--full", "tap of the chosen cases", None)


def _require_fit(patterns: list[str], names: list[str], flag: str, what: str, remedy: str | None) -> None:
    unfit = [word for word in patterns if not any(fnmatchcase(name, word) for name in names)]
    if unfit:
        near = [difflib.get_close_matches(word, names, 2, 0.3) for word in unfit]
        near = list(dict.fromkeys(name for few in near for name in few)) or list(dict.fromkeys(names))[:4]
        raise BundleError(
            f"{flag} {' '.join(unfit)} fits no {what}",
            expected=f"names or patterns of taps; near it: {', '.join(near) or 'none'}",
            remedy=remedy,
        )


def version() -> str:
    """Version of this package."""
    try:
        return importlib.metadata.version("ms-latte")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _record_run(session, case, dtype, runner, what, writer) -> dict[str, Any]:
    """Judge torch against itself, which asks everything that the port will be asked."""
    began = time.perf_counter()
    session.spill = tempfile.mkdtemp(prefix="parity-") if case.size == "full" else None
    try:
        result = runner(session, case, dtype)
    finally:
        if session.spill:
            shutil.rmtree(session.spill, ignore_errors=True)
    if not result.passed:
        said = " | ".join(line.strip() for line in report.failure(result)[1:5])
        raise BundleError(
            f"{case.id} {dtype}: torch does not agree with itself",
            got=said,
            remedy="this is no fault of the port: look at this case in `pytest parity/`",
        )
    size, seconds = writer.bytes / 1e6, time.perf_counter() - began
    told = f"{case.id:<36} {dtype:<5} {what:<9} {len(result.taps):>5} taps"
    print(f"{told} {seconds:>6.1f} s {size:>8.1f} MB so far", flush=True)
    return {"case": case.id, "dtype": dtype, "what": what, "taps": len(result.taps)}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 2 for anything that could not be recorded; then no bundle is left behind."""
    return guarded(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = parser().parse_args(arguments)
    if options.model and options.size != "full":
        raise BundleError("--model names a preset", remedy="add --size full, or choose cases with --case")
    if options.checkpoint and not Path(options.checkpoint).exists():
        raise BundleError(f"--checkpoint {options.checkpoint}: no such file or folder")
    if options.frames is not None and (options.frames < 1 or not (options.size or options.checkpoint)):
        raise BundleError(
            f"--frames {options.frames}", expected="1 or more, with --size full or --checkpoint"
        )
    alone = [flag for flag in ("set", "layout") if getattr(options, "settings" if flag == "set" else flag)]
    if alone and not options.checkpoint:
        raise BundleError(f"--{alone[0]} describes a --checkpoint; none is given")
    if options.case and (options.checkpoint or options.size):
        raise BundleError("--case, --checkpoint and --size full exclude each other")
    if options.sample < 0 or (options.full and not options.sample):
        raise BundleError("--sample needs a positive number, and --full a --sample", got=options.sample)
    target = Path(options.output).resolve()
    if (
        target.exists()
        and not (target / MANIFEST).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise BundleError(f"{target} exists and is no bundle", remedy="choose another --output")
    if (target / MANIFEST).is_file() and not options.force:
        raise BundleError(f"{target} exists", remedy="--force replaces it, or choose another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            manifest = record(options, stack.enter_context(writing_folder(target)))
        except WorkerError as error:
            remedy = None if "emedy" in str(error) else 'pip install "torch==2.13.0" (a CPU build will do)'
            raise BundleError(str(error).strip(), remedy=remedy) from None
    size = sum(facts["bytes"] for facts in manifest["files"].values())
    runs, arrays = len(manifest["runs"]), manifest["arrays"]
    print(f"{target}: {runs} runs, {arrays} arrays, {size / 1e6:.1f} MB, sha256 {manifest['sha256']}")
    print(f"next, on the machine with MindSpore: python -m parity compare {target.name} --device Ascend")
    return 0
