"""After a crash a file is the old one or the new one, and a log holds whole lines."""

import hashlib
import os
import signal
import stat
import subprocess
import sys

import pytest

from tf_dpfl.protocol import files
from tf_dpfl.protocol.files import (
    append_line_durably,
    drop_torn_line,
    sha256_hex,
    write_atomically,
)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_digest_is_sha256_in_hex(kind):
    assert sha256_hex(kind(b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 1_000_000])
def test_a_file_is_written_and_replaced_whole(tmp_path, content):
    path = tmp_path / "f"
    for data in (content, b"second"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["f"]


def test_the_mode_holds_from_the_first_moment(tmp_path, monkeypatch):
    modes = []

    def spy(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(files.os, "fsync", spy)
    write_atomically(tmp_path / "secret", b"x", mode=0o600)
    assert modes[0] == 0o600
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch, step, error):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(error):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        real_fsync(descriptor)

    def replace(old, new):
        order.append("name")
        real_replace(old, new)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_atomically(tmp_path / "f", b"x")
    assert order == ["content", "name", "folder"]


_WRITER = """
import sys
from pathlib import Path
from tf_dpfl.protocol.files import write_atomically, append_line_durably
folder = Path(sys.argv[1])
number = 0
while True:
    number += 1
    write_atomically(folder / "f", bytes([number % 256]) * 200_000)
    append_line_durably(folder / "log", str(number) * 5000)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 3, 8])
def test_a_killed_writer_leaves_whole_content(tmp_path, after):
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(after):
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    told = int((writer.stdout.read().split() or [told])[-1])
    writer.wait()
    writer.stdout.close()
    content = (tmp_path / "f").read_bytes()
    assert len(content) == 200_000 and len(set(content)) == 1
    assert content[0] in (told, told + 1)
    append_line_durably(tmp_path / "log", "last")
    lines = (tmp_path / "log").read_text().split("\n")
    numbers = [line[: len(line) // 5000] for line in lines[:-2]]
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert len(numbers) in (told, told + 1)  # nothing that was told is missing
    assert lines[-2:] == ["last", ""]


def test_lines_are_appended_in_order(tmp_path):
    for line in ("one", "", "zwei ü"):
        append_line_durably(tmp_path / "log", line)
    assert (tmp_path / "log").read_bytes() == "one\n\nzwei ü\n".encode()


@pytest.mark.parametrize("torn", [b"x", b'{"round": 3', b"\0\0\0", b"whole but for its end"])
def test_a_torn_line_never_swallows_or_joins_the_next(tmp_path, torn):
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + torn)
    append_line_durably(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"a", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"\n", b"\n")]
    # The end is looked for in blocks of 65,536 bytes.
    + [(b"a" * n, b"") for n in (65_535, 65_536, 65_537, 200_000)]
    + [(b"a\n" + b"b" * n, b"a\n") for n in (65_534, 65_535, 65_536, 131_071, 200_000)]
    + [(b"a" * 200_000 + b"\n", b"a" * 200_000 + b"\n")],
    ids=len,
)
def test_only_what_follows_the_last_line_end_is_torn(tmp_path, before, after):
    path = tmp_path / "log"
    path.write_bytes(before)
    drop_torn_line(path)
    assert path.read_bytes() == after


def test_an_absent_log_has_no_torn_line(tmp_path):
    drop_torn_line(tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("line", ["a\nb", "\n", "a\r\n"])
def test_one_line_is_one_line(tmp_path, line):
    with pytest.raises(ValueError, match="one line"):
        append_line_durably(tmp_path / "log", line)
    assert not (tmp_path / "log").exists()
