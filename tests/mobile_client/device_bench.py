"""One device on a desk: run step by step, killed and started again, without a socket."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_server import TestServer
from device_task import save_examples

from mobile_client.limits import Limits
from mobile_client.runner import DeviceConfig, open_device
from mobile_client.session import Progress, Rim, Session, Settings, step
from mobile_client.trainer import TrainerCache
from mobile_client.transport import open_client


class Bench:
    """One device on a desk: its settings, and ways to run it step by step."""

    def __init__(self, folder: Path, server: TestServer):
        self.server = server
        self.state = folder / "state"
        self.settings = Settings(
            task_key=server.task.task_key,
            data=save_examples(folder / "own.npz"),
            token="token-000",
        )
        self.trainers = TrainerCache()
        self.events: list[Progress] = []
        self.rim_changes: dict[str, Any] = {}

    def limit(self, **limits: Any) -> None:
        self.settings = replace(self.settings, limits=Limits(**limits))

    def run(self, *, steps: int = 1000, until: str = "") -> Session:
        """Steps until the task ends, an event named `until`, or an error."""
        with ExitStack() as stack:
            session, rim = self.open(stack)
            for _ in range(steps):
                session, progress = step(session, rim)
                self.events.append(progress)
                if progress.ended or progress.event == until:
                    return session
        raise AssertionError(f"not finished after {steps} steps: {self.events[-5:]}")

    def open(self, stack: ExitStack) -> tuple[Session, Rim]:
        """The device as a fresh process would open it."""
        client = stack.enter_context(
            open_client("http://device.test", transport=self.server.transport())
        )
        config = DeviceConfig(self.settings, self.state)
        session, rim = open_device(stack, config, client=client, trainers=self.trainers)
        return session, replace(rim, **self.rim_changes)
