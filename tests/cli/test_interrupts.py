"""Ctrl-C ends a command also when a library swallowed the exception."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tf_dpfl.cli.events import shown_events
from tf_dpfl.cli.interrupts import raise_if_interrupted, remember_interrupts


@pytest.fixture(autouse=True)
def default_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    remember_interrupts()  # forgets
    signal.signal(signal.SIGINT, before)


def test_a_swallowed_interrupt_is_raised_at_the_next_event(capsys):
    remember_interrupts()
    with shown_events(as_json=True) as show:
        show({"event": "started"})
        with contextlib.suppress(KeyboardInterrupt):  # as a garbage collector's callback does
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            show({"event": "round"})
    assert capsys.readouterr().out.count("\n") == 1


def test_nothing_is_raised_without_an_interrupt():
    remember_interrupts()
    raise_if_interrupted()


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    remember_interrupts()
    os.kill(os.getpid(), signal.SIGINT)
    raise_if_interrupted()
