"""A task's end is told, however soon the devices know of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from server_helpers import ServerProcess, enroll_all, http, make_plan, make_task, read_tokens

# Between the task's end, which devices see at once, and the event that tells of it.
SLOW_TO_TIDY_UP = """
import sys, time
from server.cli import main
from server.coordinator import Coordinator

tidy_up = Coordinator._drop_unused_blobs

def slowly(self):
    time.sleep(1.0)
    tidy_up(self)

Coordinator._drop_unused_blobs = slowly
sys.exit(main())
"""


def test_the_end_is_told_although_every_device_knows_it_already(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4", "--exit-when-done")
    server = ServerProcess(tmp_path / "task", state, *options, program=SLOW_TO_TIDY_UP)
    with contextlib.closing(server), http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        for number in (1, 2):
            for device in devices:
                assert device.wait_for(client, "train").round_number == number
                device.put(client, number, np.ones(6, np.float32))
        for device in devices:
            device.wait_for(client, "done")
        assert server.process.wait(30) == 0
        assert server.events("done")
