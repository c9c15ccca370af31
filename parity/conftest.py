# SPDX-License-Identifier: Apache-2.0
"""pytest options of the parity suite, the session with its worker processes, and the tables at the end.

pytest parity/ --device CPU                 every gate, tiny and thin nets
pytest parity/ --device CPU --quick         G0 and G1 only, under 30 s
pytest parity/ --device Ascend --dtype fp32,bf16
pytest parity/ --device CPU --checkpoint models/skytimelapse.pt
pytest parity/ --device CPU --lang zh       tables, messages and the page in Chinese
"""

import gc
import json
import os
import shlex
from collections import Counter
from pathlib import Path

import pytest

from converters.errors import ConversionError
from parity.harness import figures, report, score, suite
from parity.harness.ahead import LEAST, Ahead, companions
from parity.harness.backends import WorkerError
from parity.harness.case import SIZES, collect
from parity.harness.runner import HALF, Session
from parity.harness.suite import DTYPES
from parity.harness.words import EN, LANGUAGES, Words
from parity.options import check_folder, wanted_dtypes

DEVICES = ("CPU", "Ascend", "GPU")
RESULTS = pytest.StashKey[list]()
SESSION = pytest.StashKey[Session]()
AHEAD = pytest.StashKey[Ahead]()
HEADER = pytest.StashKey[list]()
CASES = pytest.StashKey[list]()
WORDS = pytest.StashKey[Words]()
LEFT_OUT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--device", default="CPU", help="device of the port: CPU or Ascend (GPU is refused)")
    group.addoption("--dtype", default="fp32,fp16,bf16", help="comma list of fp32, fp16, bf16 (default: all)")
    group.addoption(
        "--model", default="", help="Latte, LatteT2V, or a preset such as Latte-XL/2 with --size full"
    )
    group.addoption(
        "--size", default="thin", help="tiny, thin (default: tiny and full-depth thin nets) or full"
    )
    group.addoption(
        "--frames",
        type=int,
        metavar="N",
        help="frames of a full-size net or of --checkpoint (default: its own)",
    )
    group.addoption(
        "--every",
        action="store_true",
        help="runs too that repeat others: composed parts and nets in all formulations and both half types",
    )
    group.addoption(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help="runs at the same time on the CPU, each with a core and about 2 GB (default: 2; a device takes one)",
    )
    group.addoption("--quick", action="store_true", help="gates G0 and G1 on tiny nets only")
    group.addoption(
        "--checkpoint", default="", metavar="FILE", help="judge the whole net with the weights of a file"
    )
    group.addoption(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="configuration that the file lacks"
    )
    group.addoption("--layout", default="", help="layout of --checkpoint, where its names fit several")
    group.addoption(
        "--report",
        default="parity-report",
        metavar="DIR",
        help="where parity.html, .csv, .json, .md and junit.xml go (default: parity-report)",
    )
    group.addoption(
        "--lang", default="en", help="language of tables, messages and the page: en (default) or zh"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    option = config.option
    if not hasattr(option, "device"):
        return
    if option.help or option.version:
        return
    _check_options(option)
    config.stash[CASES] = _selected(option)
    if option.collectonly:  # a list needs neither workers nor a report
        return
    _check_report(option)
    config.stash[RESULTS] = []
    config.stash[WORDS] = Words(option.lang)
    small = all(case.size != "full" for case in config.stash[CASES])
    if option.device != "CPU" or option.checkpoint or not small:
        option.jobs = 1
    session = Session(option.device, overrides=_overrides(option.set), layout=option.layout)
    config.stash[SESSION] = session
    if not option.xmlpath:
        option.xmlpath = str(Path(option.report) / "junit.xml")
    config.stash[HEADER] = _header(option, session)


def _check_options(option):
    if option.device not in DEVICES:
        raise pytest.UsageError(f"--device {option.device}: expected CPU or Ascend")
    if option.device == "GPU":
        raise pytest.UsageError(
            "--device GPU: the port has no GPU formulations; use --device CPU or --device Ascend"
        )
    try:
        option.dtype = ",".join(wanted_dtypes(option.dtype, DTYPES))  # each once
    except ConversionError as error:
        raise pytest.UsageError(str(error)) from None
    if option.lang not in LANGUAGES:
        raise pytest.UsageError(f"--lang {option.lang}: expected {' or '.join(LANGUAGES)}")
    if option.size not in SIZES:
        raise pytest.UsageError(f"--size {option.size}: expected one of {', '.join(SIZES)}")
    for one, other in (("quick", "size full"), ("checkpoint", "model"), ("checkpoint", "size full")):
        given = {"quick": option.quick, "size full": option.size == "full", "checkpoint": option.checkpoint}
        given["model"] = option.model
        if given[one] and given[other]:
            raise pytest.UsageError(f"--{one} and --{other} exclude each other")
    if option.frames is not None and not (option.size == "full" or option.checkpoint):
        raise pytest.UsageError("--frames needs --size full or --checkpoint: small nets have fixed inputs")
    if option.frames is not None and option.frames < 1:
        raise pytest.UsageError(f"--frames {option.frames}: expected 1 or more")
    if option.jobs < 1:
        raise pytest.UsageError(f"--jobs {option.jobs}: expected 1 or more")
    alone = [flag for flag in ("set", "layout") if getattr(option, flag)]
    if alone and not option.checkpoint:
        raise pytest.UsageError(f"--{alone[0]} describes a --checkpoint; none is given")
    if option.checkpoint and not Path(option.checkpoint).exists():
        raise pytest.UsageError(f"--checkpoint {option.checkpoint}: no such file or folder")


def _check_report(option):
    try:
        check_folder(f"--report {option.report}", Path(option.report))
    except ConversionError as error:
        raise pytest.UsageError(str(error)) from None


def _header(option, session):
    """Start one worker of each framework: an absent framework or device ends the run here, with the remedy."""
    torch, mindspore = ("torch", "CPU", "fp64"), ("mindspore", option.device, option.dtype.split(",")[0])
    try:
        session.pool.begin(torch, mindspore)
        reference, port = session.pool.get(*torch).environment, session.pool.get(*mindspore).environment
        asked = option.dtype.split(",") if option.device != "CPU" and not option.quick else []
        controls = {dtype: session.control(dtype) for dtype in asked}
    except WorkerError as error:
        session.stop()
        remedy = "" if "emedy" in str(error) else '. Remedy: pip install -e ".[parity]"'
        raise pytest.UsageError(f"{str(error).strip()}{remedy}") from None
    settings = ", ".join(f"{k} {v}" for k, v in port.items() if k not in ("mindspore", "numpy", "device"))
    emulated = [dtype for dtype in option.dtype.split(",") if dtype in HALF]
    versions = dict(device=port["device"], mindspore=port["mindspore"], torch=reference["torch"])
    lines = [
        EN("header.versions", settings=settings, numpy=reference["numpy"], **versions),
        EN("header.rules"),
        score.line(),
    ]
    if option.device == "CPU" and emulated:
        lines.append(EN("header.emulated", dtypes=", ".join(emulated)))
    lines += [report.control_line(dtype, control) for dtype, control in controls.items()]
    if option.checkpoint:
        lines.append(_weights_line(option))
    return lines


def _weights_line(option):
    """Which weights were judged: the content hash is the one that the converters print and store."""
    from converters.stream import content_hash

    checkpoint = _opened(option)
    digest = content_hash({**checkpoint.tensors.entries, **checkpoint.extras})
    about = dict(path=option.checkpoint, layout=checkpoint.layout, model=checkpoint.model)
    return EN("header.weights", count=len(checkpoint.tensors), digest=digest, **about)


def _not_run(terminalreporter, option):
    """What this run leaves out, and why: skipped is not passed."""
    left = []
    if option.quick:
        left += [EN("not_run.quick"), EN("not_run.thin_quick")]
    elif option.size == "full":
        left.append(EN("not_run.full"))
    elif option.size == "tiny" and not option.checkpoint:
        left.append(EN("not_run.size"))
    absent = [dtype for dtype in DTYPES if dtype not in option.dtype.split(",")]
    if absent and not option.quick:
        left.append(EN("not_run.dtypes", dtypes=", ".join(absent)))
    if option.model and option.size != "full":
        left.append(EN("not_run.model", model=option.model))
    if option.checkpoint:
        left.append(EN("not_run.checkpoint"))
    counts = terminalreporter.config.stash.get(LEFT_OUT, {})
    if other_form := counts.get("not_run.other_form"):
        left.append(EN("not_run.other_form", count=other_form))
    if other_half := counts.get("not_run.other_half"):
        left.append(EN("not_run.other_half", count=other_half))
    left.append(EN("not_run.device", device=option.device))
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        left.append(EN("not_run.deselected", count=deselected))
    reasons = Counter(_skip_reason(item) for item in terminalreporter.stats.get("skipped", []))
    return left + [EN("not_run.skipped", count=n, reason=reason) for reason, n in reasons.items()]


def _skip_reason(item):
    return str(item.longrepr[2] if isinstance(item.longrepr, tuple) else item.longrepr)


def pytest_ignore_collect(collection_path, config):
    """--quick and --size full leave out the file of the other gate, so that nothing is counted as skipped."""
    cases = config.stash.get(CASES, [])
    if collection_path.name in ("test_numerics.py", "test_behaviour.py") and getattr(
        config.option, "quick", False
    ):
        return True
    full = cases and all(case.size == "full" for case in cases)
    if collection_path.name in ("test_semantics.py", "test_behaviour.py") and full:
        return True
    return None


def pytest_collection_finish(session):
    """The whole list is known: begin. The collector leaves alone what imports and the collection made."""
    stash = session.config.stash
    if SESSION not in stash:
        return
    gc.collect()
    gc.freeze()
    judged = [item for item in session.items if "judge" in getattr(item, "fixturenames", ())]
    jobs = {
        item.nodeid: item.callspec.params["run"] for item in judged if not item.get_closest_marker("skip")
    }
    beside = companions(stash[SESSION], session.config.option.jobs) if len(jobs) >= LEAST else []
    stash[AHEAD] = Ahead(jobs, beside)


def pytest_collection_modifyitems(items):
    """Meaning before numbers: G1 runs first. Runs of a dtype follow each other and share its workers."""
    ours = [place for place, item in enumerate(items) if item.path.parent.name == "parity"]
    dtypes = ("fp64", *DTYPES)
    ordered = sorted(
        (items[place] for place in ours),
        key=lambda item: (dtypes.index(_dtype(item)), item.path.name != "test_semantics.py"),
    )
    for place, item in zip(ours, ordered, strict=True):
        items[place] = item


def _dtype(item):
    run = getattr(item, "callspec", None) and item.callspec.params.get("run")
    return run.dtype if isinstance(run, suite.Run) else DTYPES[0]


def pytest_report_header(config):
    header, w = config.stash.get(HEADER, None), config.stash.get(WORDS, EN)
    return header and [w.translate(line) for line in header]


def pytest_generate_tests(metafunc):
    """The runs of a test. Those that repeat others are made with --every; else they are counted, for the line of what
    was not judged."""
    if "run" not in metafunc.fixturenames:
        return
    option, stash = metafunc.config.option, metafunc.config.stash
    test = metafunc.function.__name__.removeprefix("test_")
    found = suite.runs(test, stash[CASES], option.dtype.split(","), option.device)
    left = Counter(run.repeated for run in found if run.repeated and not option.every)
    stash.setdefault(LEFT_OUT, Counter()).update(left)
    chosen = [run for run in found if option.every or not run.repeated]
    metafunc.parametrize("run", [pytest.param(run, id=run.id) for run in chosen])


def _selected(option):
    if option.checkpoint:
        return [_file_case(option)]
    if option.size == "full":
        from parity.harness.full import full_case

        try:
            return [full_case(option.model or "Latte-XL/2", option.frames)]
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    sizes = ("tiny",) if option.quick or option.size == "tiny" else ("tiny", "thin")
    cases = [case for case in collect() if case.size in sizes]
    if option.model:
        families = sorted({case.net for case in cases if case.net})
        if option.model not in families:
            raise pytest.UsageError(
                f"--model {option.model}: expected {' or '.join(families)} (a preset needs --size full)"
            )
        cases = [case for case in cases if case.net in ("", option.model)]
    return cases


def _file_case(option):
    """The whole net of a checkpoint, on inputs that fit its configuration."""
    from parity.harness.full import file_case

    try:
        return file_case(option.checkpoint, option.layout or None, _overrides(option.set), option.frames)
    except ConversionError as error:
        raise pytest.UsageError(f"--checkpoint {option.checkpoint}: {error}") from None


def _opened(option):
    """The checkpoint of --checkpoint, in our names."""
    from converters import load

    try:
        return load(option.checkpoint, layout=option.layout or None, overrides=_overrides(option.set))
    except ConversionError as error:
        raise pytest.UsageError(f"--checkpoint {option.checkpoint}: {error}") from None


def _overrides(pairs):
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise pytest.UsageError(f"--set {pair}: expected KEY=VALUE")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


@pytest.fixture
def judge(request, record_property):
    """Run what the test is about, keep its result for the report, fail with a message of at most 15 lines."""

    def run():
        option, stash, node = request.config.option, request.config.stash, request.node
        result = stash[AHEAD].take(node.nodeid, stash[SESSION])
        result.reproduce = repeat(option, node.nodeid)
        stash[RESULTS].append(result)
        for name, value in _properties(result).items():
            record_property(name, value)
        if not result.passed:
            page = str(Path(option.report) / "parity.html")
            pytest.fail("\n".join(report.failure(result, stash[WORDS], page)), pytrace=False)

    return run


def repeat(option, node):
    """The command that repeats one run."""
    words = ["pytest", node, "--device", option.device]
    for flag in ("checkpoint", "layout", "model"):
        words += [f"--{flag}", getattr(option, flag)] if getattr(option, flag) else []
    words += ["--size", "full"] if option.size == "full" else []
    words += ["--every"] if option.every else []
    words += ["--dtype", option.dtype] if option.dtype != ",".join(DTYPES) else []
    words += ["--frames", str(option.frames)] if option.frames else []
    for pair in option.set:
        words += ["--set", pair]
    return shlex.join(words)


def _properties(result):
    properties = dict(gate=result.gate, dtype=result.dtype, formulation=result.form, taps=len(result.taps))
    if result.taps:
        worst = max(result.taps, key=lambda tap: figures.local(tap).e_c)
        properties.update(worst_tap=worst.tap, worst_local=figures.local(worst).e_c)
        properties.update(end=figures.prop(result.taps[-1]).e_c)
    return properties


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(RESULTS, [])
    if not results:
        return
    option, header, w = config.option, config.stash[HEADER], config.stash.get(WORDS, EN)
    terminalreporter.section("parity")
    not_run = _not_run(terminalreporter, option)
    lines = [
        *map(w.translate, header),
        w("line.not_run", what="; ".join(map(w.translate, not_run))),
        *(
            w("row.note", case=result.case, dtype=result.dtype, note=w.translate(note))
            for result in results
            for note in result.notes
        ),
        report.contract_line(results, w),
        *report.summary(results, option.verbose > 0, w),
    ]
    for line in lines:
        terminalreporter.write_line(line, red=line.startswith(">"))
    if os.environ.get("GITHUB_ACTIONS"):
        for line in report.annotations(results, w):
            terminalreporter.write_line(line)
    paths = report.write(results, header, Path(option.report), w, not_run)
    terminalreporter.write_line(w("line.report", paths=", ".join(map(str, [*paths, option.xmlpath]))))


def pytest_sessionfinish(session):
    stash = session.config.stash
    try:
        if AHEAD in stash:
            stash[AHEAD].stop()
    finally:
        if SESSION in stash:
            stash[SESSION].stop()
