"""The demo: one plan from a simulation to real device processes and back.

Every step is a public command, run as a user would run it; this file only puts
them in order, times them and writes `demo/summary.json` and `demo/report.html`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from commands import DEVICE, DPFL, SERVER, Background, announce, read_json_lines, run
from summary import exported_accuracy, print_table, write_page

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trial:
    """One data set's demo: the plan, the devices and what changes for them.

    The last rounds run with fewer people than the simulation had, so they ask
    more of each (`device_plan`): the noise multiplier is larger, and the ledger
    adds them to what the simulation spent.
    """

    plan: Path
    devices: int
    device_plan: tuple[str, ...]
    device_rounds: int


TRIALS = {
    "fashion_mnist": Trial(
        plan=ROOT / "examples" / "fashion_mnist.toml",
        devices=200,
        device_plan=(
            "clients.population=200",
            "clients.clients_per_round=100",
            "privacy.smallest_cohort=70",
            "privacy.noise_multiplier=2.0",
            "server.optimizer=sgd",
        ),
        device_rounds=3,
    ),
    "digits": Trial(
        plan=ROOT / "examples" / "digits.toml",
        devices=60,
        device_plan=(
            "clients.population=60",
            "clients.clients_per_round=40",
            "privacy.smallest_cohort=25",
            "privacy.noise_multiplier=2.0",
            "server.optimizer=sgd",
        ),
        device_rounds=3,
    ),
}


class Demo:
    """The steps, each with its time, in the folder `out`."""

    def __init__(self, trial: Trial, out: Path):
        self.trial = trial
        self.out = out
        self.seconds: dict[str, float] = {}
        self.figures: dict[str, object] = {}

    def path(self, name: str) -> Path:
        """A file or folder of the demo."""
        return self.out / name

    def timed(self, name: str, step) -> None:
        """Runs one step and keeps how long it took."""
        announce(f"{name} ...")
        began = time.monotonic()
        step()
        self.seconds[name] = round(time.monotonic() - began, 1)
        announce(f"{name}: {self.seconds[name]:.1f} s")

    def simulate(self) -> None:
        """TFF trains the plan's users."""
        run(DPFL, "simulate", self.trial.plan, "--out", self.path("run"))

    def export_task(self) -> None:
        """The simulated model becomes a signed task for devices."""
        changes = [*self.trial.device_plan, f"server.rounds={self.trial.device_rounds}"]
        run(
            DPFL, "export", "client", self.path("run"), "--out", self.path("task"),
            "--signing-key", self.path("task_author.key"),
            *(word for change in changes for word in ("--set", change)),
        )  # fmt: skip

    def write_device_data(self) -> None:
        """Each device gets its own user's examples; the server gets the test set."""
        run(
            DPFL, "data", "write", self.trial.plan, "--out", self.path("device_data"),
            "--clients", f"0:{self.trial.devices}", "--test", self.path("test.npz"),
        )  # fmt: skip

    def device_rounds(self) -> None:
        """A server and a fleet of devices run the last rounds over HTTP."""
        state = self.path("state")
        server = Background(
            SERVER, "run", self.path("task"), "--state", state,
            "--tokens", self.trial.devices, "--test-data", self.path("test.npz"),
            "--start-when", self.trial.devices, "--round-deadline", 120, "--exit-when-done",
            "--poll", 0.2, "--json", log=self.path("server.jsonl"),
        )  # fmt: skip
        try:
            url = server.wait_for("listening")["url"]
            run(
                DEVICE, "fleet", "--count", self.trial.devices, "--processes", 2,
                "--server", url, "--task-key", self.path("task") / "public_key.txt",
                "--data", self.path("device_data"), "--state", self.path("devices"),
                "--tokens", state / "tokens.txt", "--json", log=self.path("fleet.jsonl"),
            )  # fmt: skip
            server.finish(timeout_s=60)
        finally:
            server.stop()

    def export_model(self) -> None:
        """The trained model leaves as a TFLite file with its privacy card."""
        run(
            DPFL, "export", "model", self.path("state"), "--format", "tflite",
            "--out", self.path("model.tflite"), "--signing-key", self.path("task_author.key"),
        )  # fmt: skip

    def collect(self) -> None:
        """Reads the artefacts; every figure is from them."""
        run(DPFL, "privacy", self.path("state"), log=self.path("privacy.txt"))
        simulated = read_json_lines(self.path("run") / "metrics.jsonl")
        rounds = read_json_lines(self.path("state") / "metrics.jsonl")
        fleet = read_json_lines(self.path("fleet.jsonl"))[-1]
        card = json.loads((self.path("state") / "privacy.json").read_text())
        before = exported_accuracy(self.path("run") / "initial_model.keras", self.path("test.npz"))
        self.figures = {
            "accuracy_before": before,
            "accuracy_after_simulation": simulated[-1]["accuracy"],
            "accuracy_after_device_rounds": rounds[-1]["accuracy"],
            "accuracy_of_exported_tflite": exported_accuracy(
                self.path("model.tflite"), self.path("test.npz")
            ),
            "central_epsilon_after_simulation": simulated[-1]["central_epsilon"],
            "central_epsilon": card["central"]["epsilon"],
            "local_epsilon_per_report": card["local"]["epsilon_one_report"],
            "delta": card["central"]["delta"],
            "simulated_rounds": len(simulated),
            "device_rounds": len(rounds),
            "devices": fleet["devices"],
            "reports": [r["reports"] for r in rounds],
            "bytes_up_per_device": fleet["bytes_up_per_device"],
            "bytes_down_per_device": fleet["bytes_down_per_device"],
            "device_process_peak_mb": fleet["peak_rss_mb"],
        }


def main() -> int:
    """Runs the demo; 0 when every step did what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", choices=sorted(TRIALS), default="fashion_mnist",
        help="digits needs no data from anywhere (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="made anew (default: %(default)s)"
    )
    args = parser.parse_args()
    out = args.out.resolve()
    if out.exists() and any(out.iterdir()) and not (out / ".dpfl_demo").exists():
        parser.error(f"{out} holds other files; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / ".dpfl_demo").touch()
    demo = Demo(TRIALS[args.data], out)
    demo.timed("simulation", demo.simulate)
    demo.timed("export of the task", demo.export_task)
    demo.timed("data for the devices", demo.write_device_data)
    demo.timed("rounds with devices", demo.device_rounds)
    demo.timed("export of the model", demo.export_model)
    demo.timed("reading the artefacts", demo.collect)
    summary = {
        "version": 1,
        "data": args.data,
        **demo.figures,
        "seconds": demo.seconds,
        "seconds_in_all": round(sum(demo.seconds.values()), 1),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_page(out, summary)
    print_table(summary)
    announce(f"everything is in {out}; open report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
