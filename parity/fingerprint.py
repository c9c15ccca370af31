# SPDX-License-Identifier: Apache-2.0
"""`python -m parity fingerprint`: which arithmetic the device really does, compared with what was stored for it."""

import argparse
import json
import re
import sys
from pathlib import Path

from converters.output import write_whole
from parity.harness.backends import Worker, WorkerError
from parity.harness.fingerprint import (
    DTYPES,
    Fingerprint,
    changes,
    control_policy,
    error_ratios,
    facts_of,
    read,
)
from parity.harness.fingerprint_devices import DEVICES

FOLDER = Path(__file__).parent / "calibration"


def measure(device: str) -> tuple[dict[str, str], Fingerprint]:
    """(platform, fingerprint) of a device, each type in a process of its own: a missing kernel can poison a process.

    Raises WorkerError if the device is absent.
    """
    found, platform = Fingerprint(), {}
    for dtype in DTYPES:
        worker = Worker("mindspore", device, dtype)
        try:
            platform, part = worker("platform"), worker("fingerprint")
        finally:
            worker.stop()
        found.facts |= part.facts
        found.missing |= part.missing
    return platform, found


def calibration_file(folder: Path, platform: dict[str, str]) -> Path:
    """<soc>-<cann>-<mindspore>.json."""
    name = "-".join(platform[key] for key in ("soc", "cann", "mindspore"))
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json"


def store(path: Path, platform: dict[str, str], found: Fingerprint) -> None:
    """Write a calibration; the file appears complete or not at all."""
    content = {
        "platform": platform,
        "facts": facts_of(found),
        "error ratios": {name: float(f"{ratio:.3g}") for name, ratio in error_ratios(found).items()},
        "policies": {dtype: control_policy(found, dtype).name for dtype in DTYPES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> dict:
    """Facts of a stored calibration. Raises ValueError for a file that is none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no calibration ({type(error).__name__}: {error}); expected JSON with an entry 'facts'. "
            "Remedy: write it anew with --store"
        ) from None
    if not isinstance(facts, dict):
        raise ValueError(
            f"{path}: 'facts' is a {type(facts).__name__}, expected an object; write it anew with --store"
        )
    return facts


def report(found: Fingerprint, verbose: bool) -> list[str]:
    """The lines that every run prints."""
    lines = found.lines()
    for dtype in DTYPES:
        policy = control_policy(found, dtype)
        flush = ", subnormals flushed" if policy.flush else ""
        lines.append(f"control for {dtype}: {policy.name}{flush} ({policy.reason})")
    ratios = error_ratios(found)
    if ratios:
        words = " · ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        lines.append(f"error over numpy's float32, both against float64: {words}")
    return lines + (["", *found.table()] if verbose else [])


def main(arguments: list[str] | None = None) -> int:
    """Print the fingerprint. Exit status 0: as stored (or stored now, or emulated); 1: it differs; 2: a user's mistake;
    3: nothing is stored for this platform, so nothing was compared, and absent is not equal.
    """
    parser = argparse.ArgumentParser(
        prog="python -m parity fingerprint",
        description="Measure the effective precision of a device by micro-probes, choose the control that goes with "
        "it, and compare with the calibration stored for this chip, CANN and MindSpore version.",
        epilog="Example: python -m parity fingerprint --device Ascend --store    (once, on a machine known to be "
        "good; afterwards without --store: exit status 0 if every fact is as stored, 1 and a list of what changed, "
        "3 if nothing is stored for this platform; 2 for a wrong use or an absent device). "
        "The Ascend side has not yet run on the device.",
    )
    parser.add_argument("--device", default="CPU", help="CPU or Ascend (default: %(default)s)")
    parser.add_argument(
        "--emulated", choices=sorted(DEVICES), help="show an emulated device instead, no framework needed"
    )
    parser.add_argument("--store", action="store_true", help="write the calibration of this platform")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where calibrations stand (default: parity/calibration)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every fact")
    options = parser.parse_args(arguments)
    if options.emulated:
        if options.store:
            parser.error("--store keeps measurements of real devices; an emulated device has none")
        print(f"emulated device {options.emulated}")
        print("\n".join(report(read(DEVICES[options.emulated]), options.verbose)))
        return 0
    places = (options.folder, *options.folder.parents)
    if taken := next((place for place in places if place.exists() and not place.is_dir()), None):
        parser.error(
            f"--folder {options.folder}: {taken} is no folder; expected one, or a new name for --store"
        )
    try:
        platform, found = measure(options.device)
    except WorkerError as error:
        print(f"error: {(str(error).strip().splitlines() or ['?'])[0]}", file=sys.stderr)
        return 2
    print(f"device {options.device} · " + " · ".join(f"{name} {value}" for name, value in platform.items()))
    print("\n".join(report(found, options.verbose)))
    path = calibration_file(options.folder, platform)
    try:
        return _against(path, platform, found, options.store)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _against(path: Path, platform: dict[str, str], found: Fingerprint, keep: bool) -> int:
    if keep:
        store(path, platform, found)
        print(f"calibration stored: {path.name}")
        return 0
    if not path.exists():
        print(
            f"calibration: none stored for this platform ({path.name}), nothing compared; --store writes it"
        )
        return 3
    different = changes(load(path), found)
    if different:
        print(
            f"calibration {path.name}: {len(different)} facts CHANGED; verdicts of this device are not comparable"
        )
        print("\n".join(f"  {line}" for line in different))
        print(
            "If the change is wanted (another driver, another library): python -m parity fingerprint --store"
        )
        return 1
    print(f"calibration {path.name}: ok, {len(found.facts) + len(found.missing)} facts equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
