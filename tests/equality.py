"""Records what tests found equal: the quantity, what it equals, the largest difference, and the one allowed.

The fixture ``equals`` (conftest.py) asserts and records. At the end of a run with -v the terminal shows the table;
``--write-equality PATH`` writes it as JSON, if all tests passed and there was something to write.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import digest, write_json
from clipvip_lib.study.equality import PACKAGE
from clipvip_lib.workshop.machine import machine
from clipvip_lib.workshop.stages import library_versions

if TYPE_CHECKING:  # most test files do without torch, and conftest.py comes before all of them
    from torch import Tensor

PROPERTY = "equality"


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference, NaN if there is one; shapes must be equal."""
    ours, theirs = ours.detach(), theirs.detach()
    assert ours.shape == theirs.shape, f"expected the shape {list(theirs.shape)}, got {list(ours.shape)}"
    assert ours.numel(), f"nothing to compare in a tensor {list(ours.shape)}"
    return float((ours.double() - theirs.double()).abs().max())


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value of the reference; absolute where that is zero."""
    return largest(ours, theirs) / (float(theirs.detach().abs().max()) or 1.0)


def where_large(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative where the reference has values above one."""
    return largest(ours, theirs) / max(1.0, float(theirs.detach().abs().max()))


class Equals:
    """What the fixture gives: ``equals(quantity, against, difference, tolerance)``."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self.properties = properties
        self.rows: dict[tuple[str, str], dict] = {}

    def __call__(
        self, quantity: str, against: str, difference: float, tolerance: float, where: str = ""
    ) -> None:
        """Record the difference and assert that it is at most the tolerance; NaN never is.

        Said again of the same quantity, as by the examples of a property, the largest difference is kept.
        ``where`` tells in the message what differs most.
        """
        difference, key = float(difference), (quantity, against)
        row = {"quantity": quantity, "against": against, "difference": difference, "tolerance": tolerance}
        if key not in self.rows:
            self.rows[key] = row
            self.properties.append((PROPERTY, row))
        elif math.isnan(difference) or difference > self.rows[key]["difference"]:
            self.rows[key].update(row)
        if not difference <= tolerance:
            raise AssertionError(
                f"{quantity}: expected equality with {against} up to {tolerance:g}, got a difference of "
                f"{difference:.3g}" + (f" ({where})" if where else "")
            )


class EqualityReport:
    """Collects the rows of all tests, of all processes of xdist, and shows or writes them at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: list[dict] = []
        self.note = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            own = [row for name, row in report.user_properties if name == PROPERTY]
            self.rows += [{**row, "test": report.nodeid} for row in own]

    # Last, so that what other plugins make of the exit status is known.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self.rows.sort(key=lambda row: (row["test"], row["quantity"], row["against"]))
        path = self.config.getoption("write_equality")
        if not path:
            return
        if exitstatus != pytest.ExitCode.OK:
            self.note = f"{path} not written: not all tests passed"
        elif not self.rows:
            self.note = f"{path} not written: no test that ran records an equality"
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        else:
            try:
                write_json(path, document(self.rows))
                self.note = f"{len(self.rows)} equalities written to {path}"
            except ClipVipError as error:
                self.note, session.exitstatus = str(error), pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.rows and self.config.get_verbosity() > 0:
            terminalreporter.section("equal up to rounding")
            for line in table(self.rows):
                terminalreporter.line(line)
        if self.note:
            terminalreporter.line(self.note)


def document(rows: list[dict]) -> dict:
    """What is written: the rows, and the code, libraries and machine that they hold for."""
    fields = ("quantity", "against", "test", "difference", "tolerance")
    compared = [
        *sorted((PACKAGE / "models").glob("[!_]*.py")),
        PACKAGE / "losses.py",
        PACKAGE / "omnisource.py",
    ]
    return {
        "rows": [{field: row[field] for field in fields} for row in rows],
        "files": [path.relative_to(PACKAGE).as_posix() for path in compared],
        "code": digest(PACKAGE, compared),
        "libraries": library_versions(),
        "machine": machine(),
    }


def table(rows: list[dict]) -> list[str]:
    """Lines of a table with a head; a test's folder is left out."""
    head = ("test", "quantity", "equal to", "difference", "tolerance")
    cells = [
        (
            row["test"].rpartition("/tests/")[2].removeprefix("tests/"),
            row["quantity"],
            row["against"],
            f"{row['difference']:.2e}",
            f"{row['tolerance']:.0e}" if row["tolerance"] else "0",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (head, *cells)]  # fmt: skip


def deterministic_examples() -> None:
    """Hypothesis draws the same examples each time, so that a table that is written twice is the same."""
    settings.register_profile("equality", derandomize=True, database=None)
    settings.load_profile("equality")


def patient_examples() -> None:
    """Hypothesis judges no example by its time."""
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")
