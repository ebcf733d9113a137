"""CPU time and memory of this process and all it has started, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_AFTER_NAME = 2  # /proc/PID/stat: fields are counted from here behind the name


def family() -> list[int]:
    """This process and its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _fields(int(entry))
            if fields:
                parents[int(entry)] = int(fields[1])
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def cpu_seconds() -> float:
    """What all of them have used; also of children that ended and were waited for."""
    total = 0
    for process in family():
        fields = _fields(process)
        if fields:
            # utime, stime, cutime, cstime are fields 14 to 17 of the line.
            total += sum(int(fields[i - 1 - _AFTER_NAME]) for i in (14, 15, 16, 17))
    return total / _TICKS_PER_SECOND


def peak_mb() -> float:
    """Sum of the most memory that each process now alive has held, in MB."""
    return _sum_mb("VmHWM:")


def resident_mb() -> float:
    """Memory of all of them now that is no file's: what they hold for themselves, in MB."""
    return _sum_mb("RssAnon:")


def _sum_mb(line: str) -> float:
    """The kB of `line` in every process' /proc/PID/status, added up, in MB."""
    total = 0.0
    for process in family():
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        if line in status:
            total += int(status.split(line)[1].split()[0]) / 1000
    return total


def _fields(process: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []
