"""What all tests share: no test depends on the machine's speed or who started it."""

import signal

import pytest
from hypothesis import settings

from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE, PACKAGES

settings.register_profile("tf_dpfl", deadline=None, print_blob=True)
settings.load_profile("tf_dpfl")

# A shell starts its background jobs with SIGINT ignored, and programs hand that on to
# their children: what a test interrupts would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=PACKAGES)
def each_interpreter(request, monkeypatch):
    """Runs a test once with each package that carries a TFLite interpreter."""
    monkeypatch.setenv(CHOICE_VARIABLE, request.param)
    return request.param
