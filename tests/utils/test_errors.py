"""How scripts end, and which names are valid."""

import os
import signal

import pytest

from utils.errors import InputError, exit_on_input_error, name_problem, printable


def test_an_input_error_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise InputError("a.xml:\n  invalid\x1b[2J; repair it")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.xml: invalid\\x1b[2J; repair it\n"


@pytest.mark.skipif(os.name != "posix", reason="Windows ends the process instead of sending SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_one_line_and_their_exit_code(capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"interrupted by {number.name}\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_exceptions_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_input_error():
        raise ZeroDivisionError


@pytest.mark.parametrize("name", ["dog", "größe 大小 حجم", "خط\u200cعابر", "../a", "{0}", "<b>", "a" * 200])
def test_valid_names(name):
    """A zero-width non-joiner belongs to Persian spelling."""
    assert name_problem(name) is None
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        (" \t", "empty"),
        ("a" * 201, "201 characters"),
        (7, "int, not text"),
        (None, "NoneType, not text"),
        *((f"a{character}b", "control characters") for character in "\0\n\x1b\x7f\x9b\u202e\u2066\ud800"),
    ],
    ids=repr,
)
def test_invalid_names(name, problem):
    assert problem in name_problem(name)
    if isinstance(name, str):
        assert printable(name).encode().isascii()
