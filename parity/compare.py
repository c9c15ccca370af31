# SPDX-License-Identifier: Apache-2.0
"""`python -m parity compare BUNDLE`: judge the port against recorded answers of torch, on a machine without torch."""

import argparse
import shlex
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.command import Parser, guarded, parse_setting
from parity.harness import report
from parity.harness.backends import WorkerError
from parity.harness.behaviour import run_gradients
from parity.harness.bundle import RENEW, Bundle, BundleError, described, digest, pack, reference_hash
from parity.harness.case import Case, collect
from parity.harness.full import file_case, full_case
from parity.harness.gates import CaseResult
from parity.harness.replay import ReplayPool, weights_hash
from parity.harness.runner import HALF, Session, run_case
from parity.harness.words import EN, LANGUAGES, Words
from parity.options import check_folder, wanted_cases, wanted_dtypes
from parity.record import DTYPES, inputs_of

UNITS = ("matmul", "conv")
SHIPPED = Path(__file__).resolve().parent / "bundles"
EXAMPLES = """examples:
  python -m parity compare thin --device CPU          the bundle that comes with this package
  python -m parity compare bundle --device Ascend --dtype fp32,bf16 --report ascend
  python -m parity compare thin --mutant gelu_erf     what a failure looks like: a port bug, injected
exit status: 0 every tap passes, 1 the port disagrees, 2 the comparison could not be made (the reason is printed)
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    words = Parser(
        prog="python -m parity compare",
        description="Judge the port by a bundle of `python -m parity record`: same gates, tables and reports as "
        "`pytest parity/`. Needs MindSpore, not torch. The bundle is verified by hash first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "bundle", metavar="BUNDLE", help="a folder, or the name of a bundle in parity/bundles (thin)"
    )
    words.add_argument(
        "--device", default="CPU", choices=("CPU", "Ascend"), help="device of the port (default: CPU)"
    )
    words.add_argument("--dtype", default="", help="comma list of what was recorded (default: all of it)")
    words.add_argument(
        "--case", nargs="+", default=["*"], metavar="ID", help="cases, or patterns (default: all)"
    )
    words.add_argument(
        "--checkpoint", default="", metavar="FILE", help="the file whose weights were recorded"
    )
    words.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as it was recorded"
    )
    words.add_argument("--layout", default="", help="as it was recorded")
    words.add_argument("--report", default="parity-report", metavar="DIR", help="where the report files go")
    words.add_argument("--lang", default="en", choices=LANGUAGES, help="language of the tables (default: en)")
    words.add_argument(
        "--mutant", default="", metavar="NAME", help="inject a port bug (python -m parity mutants)"
    )
    words.add_argument("-v", "--verbose", action="store_true", help="show every row")
    return words


def find(name: str) -> Path:
    """The folder of a bundle: a path, or the name of one that comes with this package."""
    path = Path(name)
    return path if path.exists() or not (SHIPPED / name).is_dir() else SHIPPED / name


def cases_of(bundle: Bundle, options: argparse.Namespace) -> dict[str, Case]:
    """The chosen cases as they are here.

    Raises ConversionError for a pattern that fits none of the recorded cases, for options that describe a file where
    no weights of one were recorded, and for a case that is not what was recorded.
    """
    recorded = bundle.manifest["cases"]
    collected = {case.id: case for case in collect()}
    chosen = wanted_cases(options.case, recorded, str(bundle.path), ", ".join(recorded))
    given = {"--checkpoint": options.checkpoint, "--set": options.settings, "--layout": options.layout}
    unused = [flag for flag, value in given.items() if value]
    if unused and not any(recorded[id_]["origin"] == "file" for id_ in chosen):
        raise BundleError(
            f"{' '.join(unused)}: {bundle.path} was recorded with weights drawn from seeds, not with those of a file",
            remedy="python -m parity record --checkpoint FILE, and compare that bundle",
        )
    found = {}
    for id_ in chosen:
        found[id_] = _case_here(id_, recorded[id_], collected, options)
        _same_case(found[id_], recorded[id_], bundle)
    return found


def _case_here(id_: str, facts: dict, collected: dict[str, Case], options: argparse.Namespace) -> Case:
    origin = facts["origin"]
    if origin == "file":
        if not options.checkpoint:
            raise BundleError(f"{id_} was recorded with the weights of a file", remedy="--checkpoint FILE")
        overrides = dict(map(parse_setting, options.settings))
        case = file_case(options.checkpoint, options.layout or None, overrides, facts["frames"])
    elif origin.startswith("full "):
        case = full_case(origin.removeprefix("full "), facts["frames"])
    elif id_ in collected:
        case = collected[id_]
    else:
        raise BundleError(f"{id_} was recorded, but parity/models has no such case", remedy=RENEW)
    taps = dict(facts["case"]["case"]["map"]).get("taps", "all")
    return replace(case, taps=taps)


def _same_case(case: Case, facts: dict, bundle: Bundle) -> None:
    theirs, ours = (dict(packed["case"]["map"]) for packed in (facts["case"], pack(case, digest)))
    names = dict.fromkeys([*theirs, *ours])
    changed = [name for name in names if theirs.get(name) != ours.get(name)]
    if changed:
        raise BundleError(
            f"{case.id} has changed since {bundle.path} was recorded: {', '.join(changed)}",
            got={name: described(case).get(name) for name in changed},
            expected={name: theirs.get(name) for name in changed},
            remedy=RENEW,
        )
    drawn = inputs_of(case)
    moved = [name for name in drawn if drawn[name] != facts["inputs"].get(name)]
    if moved:
        raise BundleError(
            f"{case.id}: the inputs drawn here are not those of the recording: {', '.join(moved)}",
            got=", ".join(drawn[name] for name in moved),
            expected=", ".join(str(facts["inputs"].get(name)) for name in moved),
            remedy=f"same version of this package, numpy {bundle.manifest['made_by'].get('numpy')}; or {RENEW}",
        )


def plan(
    bundle: Bundle, cases: dict[str, Case], options: argparse.Namespace, session: Session
) -> list[tuple]:
    """(run, case, dtype, formulation) of everything to judge, meaning before numbers as in `pytest parity/`.

    Raises ConversionError for dtypes that were not recorded, at all or for the chosen cases.
    """
    held = [dtype for dtype in DTYPES if any(run["dtype"] == dtype for run in bundle.manifest["runs"])]
    dtypes = wanted_dtypes(options.dtype, held) if options.dtype else held
    plans = []
    for dtype in dtypes:
        for form in ("CPU", "Ascend") if dtype == "fp64" else session.forms():
            for run in bundle.manifest["runs"]:
                case = cases.get(run["case"])
                if case is None or run["dtype"] != dtype:
                    continue
                if case.size != "tiny" and dtype != "fp64" and form != session.device:
                    continue  # in half and single precision, other formulations are judged at tiny size
                plans.append((run, case, dtype, form))
    if not plans:
        raise BundleError(
            f"none of the chosen cases was recorded in {', '.join(dtypes)}",
            remedy="choose another --dtype or --case",
        )
    return plans


def made_with(bundle: Bundle) -> dict[str, str]:
    """Formats other than float32 in which the recorded control multiplies."""
    return bundle.manifest.get("products", {})


def header(bundle: Bundle, session: Session, port: dict[str, Any], plans: list[tuple], w: Words) -> list[str]:
    """Who is compared with what."""
    made = bundle.manifest["made_by"]
    settings = ", ".join(f"{k} {v}" for k, v in port.items() if k not in ("mindspore", "numpy", "device"))
    here = dict(device=port["device"], mindspore=port["mindspore"], numpy=port["numpy"])
    lines = [
        w("header.versions", settings=settings, torch=f"{made['torch']} (recorded)", **here),
        w("header.rules"),
        f"bundle {bundle.path.resolve().name}@{bundle.manifest['sha256'][:12]}, {bundle.bytes / 1e6:.1f} MB, every "
        f"file verified · recorded with {made['threads']} threads, numpy {made['numpy']}, Python {made['python']}, "
        f"{made['machine']}, ms-latte {made['ms-latte']}",
    ]
    if made["reference"] != reference_hash():
        lines.append(
            "note: the source of the reference has changed since the recording (comments count as well)"
        )
    count = bundle.manifest["sample"]
    if count:
        lines.append(
            f"results of more than {count} values are compared at {count} fixed positions, and by norm, sum, extremes "
            "and non-finite counts of the whole; results of nets, and inputs of layers, are whole"
        )
    lines += _controls(session, made_with(bundle), sorted({dtype for _, _, dtype, _ in plans} - {"fp64"}), w)
    emulated = [dtype for dtype in HALF if any(dtype == planned[2] for planned in plans)]
    if session.device == "CPU" and emulated:
        lines.append(w("header.emulated", dtypes=", ".join(emulated)))
    return lines


def _controls(session: Session, recorded: dict[str, str], dtypes: list[str], w: Words) -> list[str]:
    """Which control was recorded, beside the one that the device asks for. Raises BundleError for a coarser one."""
    live = Session(device=session.device, pool=session.pool)
    wanted = {dtype: live.control(dtype) for dtype in dtypes}
    lines = []
    if session.device != "CPU":
        lines += [report.control_line(dtype, control, w) for dtype, control in wanted.items()]
    for dtype, control in wanted.items():
        if control.products != recorded:
            here, there = (
                ",".join(f.get(unit, "fp32") for unit in UNITS) for f in (control.products, recorded)
            )
            if recorded:  # a control coarser than the device would excuse its faults
                raise BundleError(
                    f"{dtype}: the recorded control is not that of this device",
                    got=f"products (matmul,conv) of {there}",
                    expected=here,
                    remedy=f"record again with --products {here}",
                )
            lines.append(
                f"note: {dtype} is judged by a recorded control with true float32 products, which may ask more of this "
                f"device than it can give, never less; record again with --products {here}"
            )
    return lines


def left_out(bundle: Bundle, plans: list[tuple], options: argparse.Namespace) -> list[str]:
    """What a verdict of this run does not speak of, and why: English lines of `words`."""
    recorded, judged = bundle.manifest["cases"], {case.id: case for _, case, _, _ in plans}
    lines = []
    if absent := sum(case.id not in recorded for case in collect()):
        lines.append(EN("not_run.unrecorded", count=absent))
    if unchosen := len(recorded) - len(judged):
        lines.append(EN("not_run.unchosen", count=unchosen))
    if missing := [dtype for dtype in DTYPES if dtype not in {dtype for _, _, dtype, _ in plans}]:
        lines.append(EN("not_run.unrecorded_dtypes", dtypes=", ".join(missing)))
    if not all(any(run["what"] == "gradients" and run["case"] == id_ for run, *_ in plans) for id_ in judged):
        lines.append(EN("not_run.gradients"))
    lines.append(EN("not_run.live"))
    closed = [id_ for id_, case in judged.items() if case.taps == "stages"]
    if closed:
        inside = ", ".join(bundle.manifest["inside"])
        known = EN("not_run.stages_but", inside=inside) if inside else EN("not_run.stages")
        lines.append(known)
    if bundle.manifest["sample"]:
        lines.append(EN("not_run.sampled", count=bundle.manifest["sample"]))
    return [*lines, EN("not_run.device", device=options.device)]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: every tap passes; 1: the port disagrees; 2: the comparison could not be made."""
    return guarded(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = parser().parse_args(arguments)
    bundle = Bundle(find(options.bundle))
    _check(options)
    pool = ReplayPool(bundle)
    session = Session(device=options.device, pool=pool, layout=options.layout)
    session.overrides, session.products = dict(map(parse_setting, options.settings)), made_with(bundle)
    try:
        cases = cases_of(bundle, options)
        _same_weights(cases, bundle, session)
        plans = plan(bundle, cases, options, session)
        try:
            first = next((dtype for _, _, dtype, _ in plans if dtype != "fp64"), "fp32")
            port = pool.get("mindspore", options.device, first).environment
            lines = header(bundle, session, port, plans, Words(options.lang))
        except WorkerError as error:
            remedy = None if "emedy" in str(error) else 'pip install -e ".[mindspore]"'
            raise BundleError(str(error).strip(), remedy=remedy) from None
        not_run = left_out(bundle, plans, options)
        print("\n".join(lines), flush=True)
        results = [_compare_run(session, *planned, options) for planned in plans]
    finally:
        pool.stop()
    return _tell(results, lines, not_run, options)


def _check(options: argparse.Namespace) -> None:
    check_folder(f"--report {options.report}", Path(options.report))
    if options.checkpoint and not Path(options.checkpoint).exists():
        raise BundleError(f"--checkpoint {options.checkpoint}: no such file or folder")
    if options.mutant:
        from parity.mutants import MUTANTS

        if options.mutant not in MUTANTS:
            raise BundleError(f"--mutant {options.mutant}", expected=", ".join(MUTANTS))


def _same_weights(cases: dict[str, Case], bundle: Bundle, session: Session) -> None:
    for id_, case in cases.items():
        wanted = bundle.manifest["cases"][id_].get("weights")
        if wanted and wanted != (
            found := weights_hash(None, case.weights, session.layout or None, session.overrides)
        ):
            raise BundleError(
                f"{case.weights} is not the recorded file", got=f"content {found}", expected=wanted
            )


def _compare_run(session, run, case, dtype, form, options) -> CaseResult:
    session.spill = tempfile.mkdtemp(prefix="parity-") if case.taps == "stages" else None
    runner = run_gradients if run["what"] == "gradients" else run_case
    try:
        result = runner(session, case, dtype, form, options.mutant)
    finally:
        if session.spill:
            shutil.rmtree(session.spill, ignore_errors=True)
    words = ["python", "-m", "parity", "compare", options.bundle, "--device", options.device]
    words += ["--dtype", dtype, "--case", case.id]
    words += [word for pair in options.settings for word in ("--set", pair)]
    for flag in ("checkpoint", "layout", "mutant"):
        words += [f"--{flag}", getattr(options, flag)] if getattr(options, flag) else []
    result.reproduce = shlex.join(words)
    return result


def _tell(
    results: list[CaseResult], lines: list[str], not_run: list[str], options: argparse.Namespace
) -> int:
    w, folder = Words(options.lang), Path(options.report)
    for result in results:
        if not result.passed:
            print("\n" + "\n".join(report.failure(result, w)))
    notes = dict.fromkeys(
        w("row.note", case=result.case, dtype=result.dtype, note=note)
        for result in results
        for note in result.notes
    )
    print(
        "\n".join(
            [
                "",
                w("line.not_run", what="; ".join(map(w.translate, not_run))),
                *notes,
                report.contract_line(results, w),
                *report.summary(results, options.verbose, w),
            ]
        )
    )
    paths = [
        *report.write(results, lines, folder, w, not_run),
        report.junit(results, folder / "junit.xml", "parity compare"),
    ]
    print(w("line.report", paths=", ".join(map(str, paths))))
    return 0 if results and all(result.passed for result in results) else 1
