"""What several tests check alike."""

import re

import pytest

from utils.errors import InputError


def refused(pattern, call, *arguments, **settings):
    """Check that a call raises an InputError with a message of one short line that contains the pattern; return it."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 1000
    return message
