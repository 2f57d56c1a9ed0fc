"""What several tests check alike."""

import re

import pytest

from utils.errors import InputError


def refused(words, call, *arguments, **settings):
    """Check that the call ends in an InputError of one short line, in which the pattern `words` is found; return it."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 1000
    return message
