"""What all tests share: one thread per process, ``equals`` (equality.py), and runs made once (shared_runs.py)."""

import os

import equality
import pytest
from shared_runs import session_folder, smoke  # noqa: F401 (fixtures)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-equality",
        metavar="PATH",
        help="if all tests pass, write what they found equal, with the largest differences, as JSON to PATH",
    )
    parser.addoption(
        "--write-smoke-results",
        action="store_true",
        help="store the smoke run's numbers in tests/smoke_results.json before they are compared",
    )


def pytest_configure(config: pytest.Config) -> None:
    # As the study's workers: two test processes then share two cores without waiting. Before torch is imported.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    equality.patient_examples()
    if config.getoption("write_equality"):
        equality.deterministic_examples()
    if not hasattr(config, "workerinput"):  # a worker of xdist sends its rows to the process that reports
        config.pluginmanager.register(equality.EqualityReport(config), "equality-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the files end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def equals(request: pytest.FixtureRequest) -> equality.Equals:
    """``equals(quantity, against, difference, tolerance)`` asserts and records a row of the table."""
    return equality.Equals(request.node.user_properties)
