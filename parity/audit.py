# SPDX-License-Identifier: Apache-2.0
"""`python -m parity audit`: is every operator that the nets dispatch documented for Ascend?"""

import argparse
import os
import sys
from collections import Counter
from contextlib import contextmanager
from unittest import mock

from parity.harness import audit
from parity.harness.backends import Worker, WorkerError
from parity.harness.case import Case, collect
from parity.harness.inputs import realize
from parity.harness.weights import random_state

# The nets, by the id of their case, with everything that a net can switch on: a class condition and images, a mask.
CASES = (
    "latte.Latte-class",
    "latte.Latte-joint_class",
    "latte_t2v.LatteT2V-mask2d",
    "latte_t2v.LatteT2V-joint",
)
FORMS = ("CPU", "Ascend")


@contextmanager
def recorder():
    """A MindSpore worker on the CPU that logs what it dispatches."""
    with mock.patch.dict(os.environ, audit.LOGGING):  # read by the worker's MindSpore when it is imported
        worker = Worker("mindspore", "CPU", "fp32")
    try:
        yield worker
    finally:
        worker.stop()


def record(worker: Worker, case: Case, form: str) -> Counter:
    """Dispatches of one forward and one gradient of a net under a formulation set.

    Raises WorkerError for an error of the port, ValueError for a log without operators.
    """
    shapes = worker("build", case=case, rounding="native", form=form)
    state = {name: value for name, value in random_state(shapes, case.seed).items()}
    worker("load", tensors=state)
    return worker("operators", inputs=realize(case.inputs, case.seed), method=case.method)


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Exit status 1 if an operator is documented without Ascend or is not explained, 2 for a
    user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m parity audit",
        description="Record every operator that MindSpore dispatches in one forward and one gradient of each net, in "
        "the formulations of the CPU and of Ascend, and look up in MindSpore's own installed documentation "
        "(following references) whether Ascend is supported. Runs on the CPU.",
        epilog="Example: python -m parity audit --form Ascend -v    (every place and the evidence of every operator). "
        "What the documentation promises has not yet run on the device.",
    )
    parser.add_argument("--form", choices=FORMS, action="append", help="formulation set (default: both)")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="every place, the evidence of every operator"
    )
    options = parser.parse_args(arguments)
    forms = options.form or list(FORMS)
    cases = {case.id: case for case in collect()}
    try:
        docs = audit.Documentation(audit.installed())
        with recorder() as worker:
            found = {form: _all(worker, [cases[name] for name in CASES], form) for form in forms}
    except (WorkerError, ValueError) as error:
        print(f"error: {(str(error).strip().splitlines() or ['?'])[0]}", file=sys.stderr)
        return 2
    good = True
    print(f"one forward and one gradient of {', '.join(CASES)}; documentation of the MindSpore in use")
    for form in forms:
        rows = audit.judge(found[form] + Counter(audit.ON_DEVICE_ONLY if form == "Ascend" else {}), docs)
        bad = [row.operator for row in rows if not row.good]
        good &= not bad
        count = Counter(row.verdict for row in rows)
        summary = ", ".join(f"{number} {word}" for word, number in sorted(count.items()))
        print(
            f"\nformulations of {form}: {len(rows)} operators, {sum(found[form].values())} dispatches: {summary}"
        )
        print("\n".join(audit.table(rows, options.verbose)))
    print(
        "\nall operators are documented for Ascend or explained" if good else "\nFAILED: see the rows above"
    )
    return 0 if good else 1


def _all(worker, cases, form):
    found: Counter = Counter()
    for case in cases:
        found += record(worker, case, form)
    return found


if __name__ == "__main__":
    sys.exit(main())
