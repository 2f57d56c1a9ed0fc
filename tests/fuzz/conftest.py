"""How many inputs are tried, and the table of how they ended."""

import pytest
import trials


@pytest.fixture
def count(request):
    """Function of the inputs in CI's short form: as many there, six times as many with --long."""
    return lambda short: short * 6 if request.config.getoption("--long") else short


def pytest_terminal_summary(terminalreporter):
    if trials.LEDGER:
        terminalreporter.section("hostile files: how each ended")
        for line in trials.table():
            terminalreporter.write_line(line)
