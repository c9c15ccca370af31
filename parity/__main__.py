# SPDX-License-Identifier: Apache-2.0
"""`python -m parity VERB`: everything but the judging itself, which is `pytest parity/`."""

import importlib
import sys

VERBS = {
    "fingerprint": (
        "parity.fingerprint",
        "measure the device's effective precision, compare with what is stored",
    ),
    "audit": ("parity.audit", "check every operator the nets dispatch against MindSpore's own documentation"),
    "other": (
        "parity.other",
        "judge a port that this project did not write: a torch module against a MindSpore cell",
    ),
    "generate": (
        "parity.generation",
        "sample videos with the port's own command and with the torch twins, compare their bytes",
    ),
    "mutants": ("parity.mutation", "inject every catalogued port bug and show which gate kills it"),
    "record": ("parity.record", "keep what the judge asks torch in a bundle, for a machine without torch"),
    "compare": ("parity.compare", "judge the port by a bundle, on a machine without torch"),
    "bisect": ("parity.bisection", "splice reference and port until the fault is cornered"),
    "repro": ("parity.repro", "pack one layer, its inputs, weights and results into a file for a bug report"),
    "benchmark": (
        "parity.benchmark",
        "time MindSpore against torch in alternating processes, print ratios (benchmark converters: against cp)",
    ),
    "report": (
        "parity.report",
        "write the page and tables of a run again from its parity.json, e.g. in Chinese",
    ),
}


def main() -> int:
    """Dispatch. Exit status 2 for an unknown verb."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m parity VERB [options]    (python -m parity VERB --help explains one)\n\nverbs:"
        )
        for name, (_, what) in VERBS.items():
            print(f"  {name:<10} {what}")
        print("\nTo judge the port: pytest parity/ --device CPU")
        return 0
    if arguments[0] not in VERBS:
        print(f"error: unknown verb {arguments[0]!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return importlib.import_module(VERBS[arguments[0]][0]).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
