"""How scripts end, and which names are valid; the invalid ones are in test_names_from_data.py."""

import os
import signal
from pathlib import Path

import pytest

from utils.errors import InputError, exit_on_input_error, name_problem, printable


def test_an_input_error_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise InputError("a.xml:\n  invalid\x1b[2J; repair it")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.xml: invalid\\x1b[2J; repair it\n"
    with pytest.raises(ZeroDivisionError), exit_on_input_error():  # a bug keeps its traceback
        raise ZeroDivisionError


def test_a_path_that_is_too_long_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        Path("a" * 300).read_bytes()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {'a' * 300}: File name too long; choose another path\n"
    with pytest.raises(FileNotFoundError), exit_on_input_error():  # a bug keeps its traceback
        Path("missing").read_bytes()


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


@pytest.mark.parametrize("name", ["dog", "größe 大小 حجم", "خط\u200cعابر", "../a", "{0}", "<b>", "a" * 200])
def test_valid_names(name):
    """A zero-width non-joiner belongs to Persian spelling."""
    assert name_problem(name) is None
    assert printable(name) == name
