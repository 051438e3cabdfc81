"""The parity suite exists only where the torch packages do; its figures are printed at the end of the run.

RVCD_PARITY_REPORT names a file; the table is written beside it as Markdown and JSON.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.parity.report import Report

REPORT = pytest.StashKey[Report]()
collect_ignore = [] if importlib.util.find_spec("torch") else ["test_parity.py"]


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """The table of this run."""
    return request.config.stash.setdefault(REPORT, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if report := config.stash.get(REPORT, None):
        terminalreporter.section("figures")
        terminalreporter.write_line(report.to_markdown())
        if path := os.environ.get("RVCD_PARITY_REPORT"):
            report.write(Path(path))
