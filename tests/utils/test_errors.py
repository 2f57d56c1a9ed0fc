"""How scripts end."""

import errno
import os
import signal

import pytest

from utils.errors import InputError, exit_on_input_error
from utils.system import StopSignals


@pytest.mark.parametrize(("error", "line"), [
    (InputError("a.xml:\n  invalid\x1b[2J; repair it"), "a.xml: invalid\\x1b[2J; repair it"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa: File name too long; choose another path"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, error, line):
    with pytest.raises(SystemExit, match="2"), exit_on_input_error():
        raise error
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError, FileNotFoundError(errno.ENOENT, "No such file", "missing")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises((ZeroDivisionError, FileNotFoundError)), exit_on_input_error():
        raise bug


@pytest.mark.skipif(os.name != "posix", reason="Windows ends the process instead of sending SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("importing", [False, True])
def test_signals_are_one_line_and_their_exit_code(capsys, number, importing):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            if importing:  # as an extension module does that is interrupted while it loads
                raise ImportError("initialization failed") from error
            raise
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"interrupted by {number.name}\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_a_second_ctrl_c_interrupts_the_work():
    with StopSignals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
