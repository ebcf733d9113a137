"""One worker process of a fleet: its share of the devices, from stdin to stdout.

Stdin: one JSON line (`share_to_json`), then held open by the parent; when it
closes, the parent is gone and so is the worker. A device survives that: its
folder says where to go on. Stdout: one JSON line an event, "worker" last.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from mobile_client.events import Printer, peak_rss_mb
from mobile_client.limits import Limits
from mobile_client.runner import DeviceConfig, run_devices
from mobile_client.session import Settings
from mobile_client.transport import open_client


def share_to_json(server: str, devices: Sequence[tuple[int, DeviceConfig]]) -> str:
    """One line for a worker's stdin; tokens never stand on a command line."""
    return json.dumps(
        {
            "server": server,
            "devices": [
                {
                    "number": number,
                    "state": str(config.state),
                    "data": str(config.settings.data),
                    "token": config.settings.token,
                    "task_key": config.settings.task_key,
                    "patience_s": config.settings.patience_s,
                    "limits": asdict(config.settings.limits),
                }
                for number, config in devices
            ],
        }
    )


def share_from_json(line: str) -> tuple[str, list[tuple[int, DeviceConfig]]]:
    """What `share_to_json` wrote; both run from the same release."""
    tree = json.loads(line)
    return tree["server"], [(entry["number"], _device(entry)) for entry in tree["devices"]]


def _device(entry: Mapping[str, Any]) -> DeviceConfig:
    settings = Settings(
        task_key=entry["task_key"],
        data=Path(entry["data"]),
        token=entry["token"],
        limits=Limits(**entry["limits"]),
        patience_s=entry["patience_s"],
    )
    return DeviceConfig(settings, Path(entry["state"]))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _allow_many_files() -> None:
    """Each device holds its folder's lock open: as many as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> NoReturn:
    """Runs the share on stdin until none of its devices is left; ends the process."""
    server, devices = share_from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _allow_many_files()
    printer = Printer(as_json=True)
    with open_client(server) as client:
        counts = run_devices(devices, client=client, emit=printer.emit)
    printer.emit({"event": "worker", "peak_rss_mb": peak_rss_mb(), **counts})
    # Not a return: the thread holds stdin's lock, which a finalizing interpreter
    # would wait for.
    os._exit(0)


if __name__ == "__main__":
    main()
