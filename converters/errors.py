# SPDX-License-Identifier: Apache-2.0
"""The one error of this package: what is wrong, what was got, what was expected, what to do."""


class ConversionError(ValueError):
    """A checkpoint, a configuration or a request that cannot be served as it is."""

    def __init__(
        self, problem: str, *, got: object = None, expected: object = None, remedy: str | None = None
    ):
        parts = [problem]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        self.problem, self.got, self.expected, self.remedy = problem, got, expected, remedy
        super().__init__("; ".join(parts))

    def one_line(self) -> str:
        """The message for a command line: a report of several lines is joined into one."""
        return printable(" | ".join(line.strip() for line in str(self).split("\n") if line.strip()))


def printable(line: str, limit: int = 20_000) -> str:
    """The line without control characters, and not endless: names come from files that nobody trusts."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]} ..."
