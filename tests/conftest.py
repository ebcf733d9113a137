"""What all tests share: no test depends on how fast the machine is; both interpreters."""

import pytest
from hypothesis import settings

from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE, PACKAGES

settings.register_profile("tf_dpfl", deadline=None, print_blob=True)
settings.load_profile("tf_dpfl")


@pytest.fixture(params=PACKAGES)
def each_interpreter(request, monkeypatch):
    """Runs a test once with each package that carries a TFLite interpreter."""
    monkeypatch.setenv(CHOICE_VARIABLE, request.param)
    return request.param
