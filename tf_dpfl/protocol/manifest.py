"""The task's manifest: what a device must know and can verify before it trains."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tf_dpfl.protocol import signing
from tf_dpfl.protocol.checks import LARGEST_INTEGER
from tf_dpfl.protocol.errors import PlanError, TaskError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.interface import ExampleInterface
from tf_dpfl.protocol.plan import Plan, plan_from_dict, plan_to_dict
from tf_dpfl.protocol.tensors import TensorLayout
from tf_dpfl.protocol.wire import is_hex

MANIFEST_VERSION = 2

# The names of a task folder's files.
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
PUBLIC_KEY_FILE = "public_key.txt"
CLIENT_FILE = "client.tflite"
WEIGHTS_FILE = "weights.bin"
KERAS_FILE = "model.keras"
TASK_FILES = (CLIENT_FILE, WEIGHTS_FILE, KERAS_FILE)

# Names a folder or a log can carry as they are.
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")

# A manifest is read before its signature can be checked: bound it.
LARGEST_MANIFEST_BYTES = 1 << 20

_DP_METHODS = ("one_pass", "loop")


@dataclass(frozen=True)
class DpMethod:
    """How `train_dp` clips each example, "one_pass" or "loop", and why this one."""

    name: str
    reason: str


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and SHA-256 (hex) of one file of the task."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        """The digest of `data`."""
        return cls(len(data), sha256_hex(data))

    def check(self, name: str, data: bytes) -> None:
        """Raises TaskError unless `data` has this size and digest."""
        if len(data) != self.size:
            raise TaskError(f"{name}: {len(data)} bytes, the manifest says {self.size}")
        if sha256_hex(data) != self.sha256:
            raise TaskError(f"{name}: its SHA-256 is not the manifest's; fetch it again")


@dataclass(frozen=True)
class Manifest:
    """A task, as signed. Times are seconds since 1970-01-01 UTC.

    `prior_spending` lists what was already released about the same clients
    before this task (a simulation whose rounds it continues), as plain
    mechanism descriptions of `tf_dpfl.privacy.mechanism`. `central_epsilon` is
    the card's claim over everything when all rounds are done, null when
    infinite; a device can not recompute it, so it only limits what it accepts.
    `dp_method` is there for plans with unit "example" and for no others.
    """

    task_id: str
    plan: Plan
    layout: TensorLayout
    interface: ExampleInterface
    files: Mapping[str, FileDigest]
    valid_from_s: int
    valid_until_s: int
    central_epsilon: float | None
    prior_spending: tuple[Mapping[str, Any], ...] = ()
    dp_method: DpMethod | None = None
    version: int = MANIFEST_VERSION

    def check_validity(self, now_s: float) -> None:
        """Raises TaskError when the task is not valid at `now_s`."""
        if not self.valid_from_s <= now_s:
            raise TaskError(f"the task is valid from {self.valid_from_s}, now is {now_s:.0f}")
        if not now_s < self.valid_until_s:
            raise TaskError(
                f"the task ended at {self.valid_until_s}, now is {now_s:.0f}; export it again"
            )


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Canonical JSON; these bytes are what is signed and sent."""
    plan = manifest.plan
    tree: dict[str, Any] = {
        "version": manifest.version,
        "task_id": manifest.task_id,
        "plan": plan_to_dict(plan),
        "privacy": {**_privacy_summary(plan), "central_epsilon": manifest.central_epsilon},
        "layout": manifest.layout.to_json(),
        "interface": manifest.interface.to_json(),
        "files": {
            name: {"size": digest.size, "sha256": digest.sha256}
            for name, digest in manifest.files.items()
        },
        "valid_from_s": manifest.valid_from_s,
        "valid_until_s": manifest.valid_until_s,
        "prior_spending": [dict(entry) for entry in manifest.prior_spending],
        "dp_method": None if manifest.dp_method is None else asdict(manifest.dp_method),
    }
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _privacy_summary(plan: Plan) -> dict[str, Any]:
    """The mechanism's settings once more, for readers that do not know plans."""
    # Only where they change what the other entries mean: older tasks have no such entries.
    mechanism = {"mechanism": plan.privacy.mechanism} if plan.privacy.is_correlated else {}
    whole = plan.privacy.clipping == "global"
    clipping = {} if whole else {"clipping": plan.privacy.clipping}
    # There clip_norm is only where the clip norm starts, and reports have a count.
    adapts = (
        {"adaptive_clipping": True, "clip_count_stddev": plan.clip_count_stddev}
        if plan.privacy.adaptive_clipping
        else {}
    )
    local = plan.privacy.target_local_epsilon
    return {
        **mechanism,
        **clipping,
        **adapts,
        **({} if local is None else {"target_local_epsilon": local}),
        "unit": plan.privacy.unit,
        "noise": plan.privacy.noise,
        "clip_norm": plan.privacy.clip_norm,
        "noise_multiplier": plan.privacy.calibrated_noise_multiplier,
        "smallest_cohort": plan.privacy.smallest_cohort,
        "delta": plan.privacy.delta,
    }


def sign_manifest(key: Ed25519PrivateKey, raw: bytes) -> str:
    """The signature (hex) over the manifest's bytes."""
    return signing.sign(key, raw, purpose=signing.MANIFEST_PURPOSE)


def verify_manifest(raw: bytes, signature: str, *, public_key: str) -> Manifest:
    """The manifest in `raw` after its signature was checked.

    Args:
      raw: the bytes as received.
      signature: hex, by the task's author.
      public_key: the author's key (hex), known beforehand and not from the server.

    Raises:
      TaskError: wrong signature, size, version or content.
    """
    if len(raw) > LARGEST_MANIFEST_BYTES:
        raise TaskError(
            f"manifest: {len(raw)} bytes are more than the {LARGEST_MANIFEST_BYTES} allowed"
        )
    key = signing.parse_public_key(public_key)
    if not signing.is_signed(key, raw, signature, purpose=signing.MANIFEST_PURPOSE):
        raise TaskError("manifest: the signature is not by the task key that is trusted here")
    return parse_manifest(raw)


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest in `raw`, every value checked; the signature is not looked at."""
    try:
        tree = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"manifest: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise TaskError("manifest: must be a JSON object")
    if tree.get("version") != MANIFEST_VERSION or type(tree["version"]) is not int:
        raise TaskError(
            f"manifest: version {tree.get('version')!r} is not readable here; this release "
            f"reads version {MANIFEST_VERSION}: export the task again or update this program"
        )
    try:
        plan = plan_from_dict(tree["plan"], source="manifest plan")
        manifest = Manifest(
            task_id=_task_id(tree["task_id"]),
            plan=plan,
            layout=TensorLayout.from_json(tree["layout"]),
            interface=ExampleInterface.from_json(tree["interface"]),
            files={
                name: FileDigest(
                    _positive(tree["files"][name]["size"], f"files.{name}.size"),
                    _sha256(tree["files"][name]["sha256"], f"files.{name}.sha256"),
                )
                for name in TASK_FILES
            },
            valid_from_s=_positive(tree["valid_from_s"], "valid_from_s"),
            valid_until_s=_positive(tree["valid_until_s"], "valid_until_s"),
            central_epsilon=_optional_number(tree["privacy"]["central_epsilon"]),
            prior_spending=tuple(_mapping(entry) for entry in tree["prior_spending"]),
            dp_method=_dp_method(tree["dp_method"], unit=plan.privacy.unit),
        )
        summary = {**_privacy_summary(plan), "central_epsilon": manifest.central_epsilon}
    except PlanError as error:
        raise TaskError(f"manifest: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TaskError(f"manifest: missing or malformed entry: {error!r}") from None
    if tree["privacy"] != summary:
        raise TaskError("manifest: its privacy entry contradicts its plan; do not trust it")
    if not manifest.valid_from_s < manifest.valid_until_s:
        raise TaskError(
            f"manifest: valid_until_s={manifest.valid_until_s} must be after "
            f"valid_from_s={manifest.valid_from_s}"
        )
    if manifest.files[WEIGHTS_FILE].size != manifest.layout.nbytes:
        raise TaskError(
            f"manifest: {WEIGHTS_FILE} of {manifest.files[WEIGHTS_FILE].size} bytes does not "
            f"fit the layout ({manifest.layout.nbytes} bytes)"
        )
    return manifest


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _task_id(value: Any) -> str:
    if not isinstance(value, str) or not _TASK_ID.match(value):
        raise TaskError(
            f"manifest: task_id={value!r:.80} must be 1 to 128 letters, digits, '.', '_' or '-'"
        )
    return value


def _sha256(value: Any, name: str) -> str:
    if not is_hex(value, digits=64):
        raise TaskError(f"manifest: {name}={value!r:.80} must be 64 lower-case hex digits")
    return str(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"manifest: prior_spending entry {value!r:.80} must be an object")
    return value


def _dp_method(value: Any, *, unit: str) -> DpMethod | None:
    if (value is not None) != (unit == "example"):
        raise TaskError(
            f'manifest: dp_method={value!r:.80} does not fit privacy.unit="{unit}"; export the '
            "task again"
        )
    if value is None:
        return None
    name, reason = value["name"], value["reason"]
    if name not in _DP_METHODS or not isinstance(reason, str) or len(value) != 2:
        raise TaskError(
            f"manifest: dp_method={value!r:.80} must hold a name of {', '.join(_DP_METHODS)} and "
            "a reason"
        )
    return DpMethod(name, reason)


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value <= LARGEST_INTEGER:
        raise TaskError(f"manifest: {name}={value!r:.80} must be an integer > 0")
    return value


def _optional_number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise TaskError(f"manifest: central_epsilon={value!r:.80} must be a number >= 0 or null")
    return float(value)
