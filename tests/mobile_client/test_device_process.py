"""Real device processes: what they hold in memory, what they answer, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from device_server import TestServer
from device_task import SignedTask, flags, save_examples, sign_task

from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE, PACKAGES

ROOT = Path(__file__).parents[2]
# The environment made from requirements-device.lock alone, where there is one.
LEAN = ROOT / ".venv-device" / "bin" / "python"
PYTHON = str(LEAN) if LEAN.exists() else sys.executable
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
MOST_RSS_BYTES = 80_000_000

HEAVY = {"tensorflow", "keras", "tensorflow_federated", "tf_keras", "jax", "scipy"}


def run(*arguments: str, timeout: float = 60, python: str = PYTHON) -> Any:
    return subprocess.run(
        [python, "-m", "mobile_client.cli", *arguments],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


REPORT = """
import json, sys
from mobile_client.cli import main
status = main(sys.argv[1:])
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
print(json.dumps({"event": "process", "modules": sorted(sys.modules), "peak_kb": int(peak)}))
sys.exit(status)
"""


# httpx imports 7 MB of optional packages where it finds them, as in the full environment.
@pytest.mark.parametrize(
    ("python", "interpreter"),
    [(PYTHON, "ai-edge-litert"), (sys.executable, "tflite-runtime")],
    ids=["LiteRT in the device's environment", "tflite-runtime in the full one"],
)
def test_a_device_with_the_cnn_holds_no_tensorflow_and_stays_below_80_mb(
    tmp_path: Path, client_files: Path, python: str, interpreter: str
) -> None:
    task = sign_task(client_files, "cnn")
    data = save_examples(tmp_path / "own.npz", "cnn")
    server = TestServer(task, rounds=2)
    with server.listening() as url:
        options = flags(
            server=url,
            task_key=task.task_key,
            data=data,
            state=tmp_path / "state",
            token="token-000",
        )
        done = subprocess.run(
            [python, "-c", REPORT, "run", "--json", *options],
            env={**ENVIRONMENT, CHOICE_VARIABLE: interpreter},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    assert [event["event"] for event in events].count("report") == 2
    process = events[-1]
    loaded = {name.split(".")[0] for name in process["modules"]}
    assert loaded & HEAVY == set()
    assert {"mobile_client", "tf_dpfl", "numpy", "httpx"} <= loaded
    runtimes = {name.replace("-", "_") for name in PACKAGES}
    assert loaded & runtimes == {interpreter.replace("-", "_")}
    assert "server" not in loaded
    assert process["peak_kb"] * 1024 < MOST_RSS_BYTES


def test_help_is_light() -> None:
    program = (
        "import sys\nfrom mobile_client.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [PYTHON, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert "--max-local-epsilon" in done.stdout
    modules = done.stdout.splitlines()[-1]
    for name in (
        "numpy",
        "httpx",
        "ai_edge_litert",
        "tflite_runtime",
        "cryptography",
        "tensorflow",
    ):
        assert f"'{name}'" not in modules


def common(task: SignedTask, tmp_path: Path, url: str = "http://127.0.0.1:9") -> list[str]:
    return flags(
        server=url,
        task_key=task.task_key,
        data=save_examples(tmp_path / "own.npz"),
        state=tmp_path / "state",
        token="token-000",
    )


def one_line(done: Any, status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--server": "nowhere"}, ["nowhere"]),
        ({"--task-key": "abc"}, ["--task-key"]),
        ({"--task-key": "z" * 64}, ["64 hex digits"]),
        ({"--task-key": PYTHON}, ["the file does not hold 64 hex digits"]),
        ({"--max-local-epsilon": "nan"}, ["nan"]),
        ({"--max-central-epsilon": "-1"}, ["-1"]),
        ({"--min-noise-multiplier": "much"}, ["much"]),
        ({"--patience": "0"}, ["127.0.0.1:9"]),
        ({"--data": "/nowhere.npz", "--patience": "0"}, []),
        ({"--state": "/proc/nowhere", "--patience": "0"}, ["/proc/nowhere"]),
        ({"--colour": "red"}, ["--colour"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, client_files: Path, changes: dict[str, str], words: list[str]
) -> None:
    arguments = common(sign_task(client_files), tmp_path)
    for option, value in changes.items():
        arguments += [f"{option}={value}"]
    one_line(run("run", *arguments), 2, *words)


def test_own_limits_are_one_line_and_status_3(tmp_path: Path, task: SignedTask) -> None:
    server = TestServer(task)
    with server.listening() as url:
        key_file = tmp_path / "key.txt"
        key_file.write_text(task.task_key + "\n")
        arguments = [*common(task, tmp_path, url), "--task-key", str(key_file)]
        done = run("run", *arguments, "--max-local-epsilon", "0.1")
        one_line(done, 3, "max-local-epsilon", "nothing more is sent")
        assert server.arrived == []
        done = run("run", *arguments)
        assert done.returncode == 0, done.stderr
        assert "the task has ended: 3 report(s) sent" in done.stdout
    status = run("status", "--state", str(tmp_path / "state"), "--json")
    assert events_of(status.stdout)[0]["reports_sent"] == 3
    assert "local_epsilon" in run("status", "--state", str(tmp_path / "state")).stdout
    one_line(run("status", "--state", str(tmp_path / "none")), 2, "no device has joined")


def test_kill_minus_nine_between_charge_and_answer_sends_the_same_bytes(
    tmp_path: Path, task: SignedTask
) -> None:
    server = TestServer(task)
    victims: list[int] = []

    def kill(_: str, number: int, body: bytes) -> None:
        ledger = json.loads((tmp_path / "state" / "ledger.json").read_text())
        charged = {entry["round"]: entry["sha256"] for entry in ledger["reports"]}
        assert charged[number] == sha256_hex(body)
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)

    server.on_update = kill
    with server.listening() as url:
        command = [PYTHON, "-m", "mobile_client.cli", "run", *common(task, tmp_path, url)]
        for _ in range(3):
            device = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL)
            victims.append(device.pid)
            assert device.wait(60) == -signal.SIGKILL
        assert run("run", *common(task, tmp_path, url)).returncode == 0
    by_round: dict[int, set[bytes]] = {}
    for _, number, body in server.arrived:
        by_round.setdefault(number, set()).add(body)
    assert sorted(by_round) == [1, 2, 3]
    assert all(len(bodies) == 1 for bodies in by_round.values())
    assert len(server.arrived) > 3


def fleet_command(task: SignedTask, tmp_path: Path, url: str, count: int) -> list[str]:
    (tmp_path / "data").mkdir()
    for number in range(count):
        save_examples(tmp_path / "data" / f"client_{number:05d}.npz", seed=number)
    tokens = [f"token-{number:03d}" for number in range(count)]
    (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n")
    options = flags(
        count=count,
        processes=2,
        server=url,
        task_key=task.task_key,
        data=tmp_path / "data",
        state=tmp_path / "fleet",
        tokens=tmp_path / "tokens.txt",
    )
    return ["fleet", "--json", *options]


def test_devices_of_a_fleet_are_independent(tmp_path: Path, task: SignedTask) -> None:
    server = TestServer(task, rounds=2, devices=5)
    with server.listening() as url:
        done = run(*fleet_command(task, tmp_path, url, 5))
    assert done.returncode == 0, done.stderr
    result = events_of(done.stdout)[-1]
    assert (result["event"], result["devices"], result["ended"]) == ("fleet", 5, 5)
    assert (result["reports_sent"], result["reports_dropped"]) == (10, 0)
    nbytes = task.manifest.layout.nbytes
    assert 2 * nbytes <= result["bytes_up_per_device"] < 2 * nbytes + 1000
    assert result["bytes_down_per_device"] >= 2 * nbytes + len(task.client)
    assert result["peak_rss_mb"] < 80
    assert len(server.keys) == 5
    assert len({body for _, _, body in server.arrived}) == 10
    assert len(list((tmp_path / "fleet").iterdir())) == 5


def test_one_bad_device_does_not_stop_the_fleet(tmp_path: Path, task: SignedTask) -> None:
    server = TestServer(task, rounds=1, devices=2)
    with server.listening() as url:
        command = fleet_command(task, tmp_path, url, 3)
        (tmp_path / "data" / "client_00001.npz").write_bytes(b"broken")
        done = run(*command)
    assert done.returncode == 2
    events = events_of(done.stdout)
    failed = [event for event in events if event["event"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["device"] == 1
    assert "client_00001.npz" in failed[0]["reason"]
    assert (events[-1]["ended"], events[-1]["failed"]) == (2, 1)


def test_a_fleet_stopped_by_its_own_limits_says_so(tmp_path: Path, task: SignedTask) -> None:
    server = TestServer(task, rounds=1, devices=2)
    with server.listening() as url:
        command = fleet_command(task, tmp_path, url, 2)
        done = run(*command, "--min-noise-multiplier", "50")
    assert done.returncode == 3
    assert events_of(done.stdout)[-1]["limited"] == 2
    assert server.arrived == []


@pytest.mark.parametrize(
    ("option", "word"),
    [("--count=4", "needs as many"), ("--count=0", "--count"), ("--processes=0", "--processes")],
)
def test_a_fleet_without_enough_of_everything_is_one_line(
    tmp_path: Path, task: SignedTask, option: str, word: str
) -> None:
    command = fleet_command(task, tmp_path, "http://127.0.0.1:9", 3)
    one_line(run(*command, option), 2, word)


def test_workers_end_with_a_killed_fleet_which_can_then_go_on(
    tmp_path: Path, task: SignedTask
) -> None:
    server = TestServer(task, rounds=3, devices=4)
    with server.listening() as url:
        command = fleet_command(task, tmp_path, url, 4)
        with open(tmp_path / "events", "wb") as output:
            fleet = subprocess.Popen(
                [PYTHON, "-m", "mobile_client.cli", *command],
                env=ENVIRONMENT,
                cwd=ROOT,
                stdout=output,
            )
        end = time.monotonic() + 60
        while b'"report"' not in (tmp_path / "events").read_bytes():
            assert time.monotonic() < end
            time.sleep(0.01)
        workers = psutil.Process(fleet.pid).children()
        fleet.kill()
        fleet.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
        done = run(*command)
    assert done.returncode == 0, done.stderr
    by_report: dict[tuple[str, int], set[bytes]] = {}
    for device, number, body in server.arrived:
        by_report.setdefault((device, number), set()).add(body)
    assert all(len(bodies) == 1 for bodies in by_report.values())
    assert len(by_report) == 12


@pytest.mark.parametrize("command", ["run", "fleet"])
def test_an_interrupt_is_one_line_and_leaves_no_process(
    tmp_path: Path, task: SignedTask, command: str
) -> None:
    server = TestServer(task)
    wait = json.dumps({"state": "wait", "retry_after_s": 0.05}).encode()
    server.faults["POST /v1/checkin"] = lambda _: (200, wait)
    with server.listening() as url:
        if command == "run":
            arguments = ["run", "--json", *common(task, tmp_path, url)]
        else:
            arguments = fleet_command(task, tmp_path, url, 2)
        program = subprocess.Popen(
            [PYTHON, "-m", "mobile_client.cli", *arguments],
            env=ENVIRONMENT,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts its background jobs, and so the tests in one, deaf to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        end = time.monotonic() + 60
        while server.count("POST", "/v1/checkin") < 10:
            assert time.monotonic() < end
            time.sleep(0.01)
        children = psutil.Process(program.pid).children(recursive=True)
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert errors == "dpfl-device: interrupted; start it again to go on\n"
    assert len(children) == (2 if command == "fleet" else 0)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
