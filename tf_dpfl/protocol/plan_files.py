"""Plans as TOML files: reading, single-value overrides, writing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import Plan, plan_from_dict, plan_to_dict

# A local target beside a noise multiplier would only be checked; named, it is to be solved.
_REPLACED_BY = {
    "noise_multiplier": "target_epsilon",
    "target_epsilon": "noise_multiplier",
    "target_local_epsilon": "noise_multiplier",
}


def load_plan(path: str | Path, *, overrides: Sequence[str] = ()) -> Plan:
    """Reads `plan.toml`.

    Args:
      path: the file. Relative `data.path` and `data.test_path` are resolved
        against its folder.
      overrides: `"section.key=value"` texts put over the file's values, the
        value written as in TOML (a bare word is taken as a string).

    Raises:
      PlanError: with all faults at once, each naming file, key, value and what
        is allowed.
    """
    path = Path(path)
    tree = _parse(path)
    faults: list[str] = []
    for override in overrides:
        try:
            _apply_override(tree, override)
        except PlanError as error:
            faults += error.faults
    try:
        plan = plan_from_dict(tree, source=str(path))
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from None
    if faults:
        raise PlanError(faults)
    base = path.resolve().parent
    data = replace(
        plan.data,
        path=str(base / plan.data.path) if plan.data.path else "",
        test_path=str(base / plan.data.test_path) if plan.data.test_path else "",
    )
    return replace(plan, data=data)


def noise_in_favour_of_local_target(path: str | Path, *, overrides: Sequence[str]) -> str:
    """What the plan's file says of its noise, as "key=value", where it no longer counts.

    That is where `overrides` name `privacy.target_local_epsilon`, which then decides
    alone: whatever central epsilon the noise in the file was for is not held to any more.
    Empty where that is not so. `load_plan` has read the same without a fault.
    """
    tree = _parse(Path(path))
    before = dict(tree["privacy"])
    for override in overrides:
        _apply_override(tree, override)
    asked_of_models = ("noise_multiplier", "target_epsilon")
    if any(key in tree["privacy"] for key in asked_of_models):
        return ""
    return "".join(f"privacy.{key}={before[key]:g}" for key in asked_of_models if key in before)


def plan_with(plan: Plan, values: Mapping[str, Any], *, source: str = "plan") -> Plan:
    """The plan with other values of some of its keys ("section.key"), all checked again.

    Raises PlanError with all faults at once, `source` before each of them.
    """
    tree = plan_to_dict(plan)
    for name, value in values.items():
        section, _, key = name.partition(".")
        _put(tree, section, key, value)
    return plan_from_dict(tree, source=source)


def value_of(text: str) -> Any:
    """A value written as in TOML; anything that TOML does not know is a string."""
    try:
        parsed = _toml().loads(f"value = {text}")
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        parsed = {}
    return parsed["value"] if set(parsed) == {"value"} else text.strip()


def plan_to_toml(plan: Plan) -> str:
    """The plan as TOML text that `load_plan` reads back to an equal plan."""
    tree = plan_to_dict(plan)
    lines = [f"version = {tree.pop('version')}"]
    for section, values in tree.items():
        lines += ["", f"[{section}]"]
        # JSON's strings, numbers, booleans and flat lists are TOML's too.
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # TOML has no surrogate escapes, which JSON writes for characters beyond
    # U+FFFF, and no bare U+007F, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml() -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.9 and 3.10: the device's older interpreters
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
    return tomllib


def _parse(path: Path) -> dict[str, Any]:
    toml = _toml()
    try:
        text = path.read_bytes().decode()
        tree: dict[str, Any] = toml.loads(text)
        return tree
    except FileNotFoundError:
        raise PlanError([f"{path}: no such plan file"]) from None
    except toml.TOMLDecodeError as error:
        raise PlanError([f"{path}: not valid TOML: {error}"]) from None
    # ValueError: not UTF-8, a NUL in the path, an integer of thousands of digits.
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError([f"{path}: cannot be read as a plan: {error}"]) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    target, equals, raw = override.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot and section and key):
        raise PlanError([f"--set {override!r} must read section.key=value"])
    if section in tree and not isinstance(tree[section], dict):
        raise PlanError([f"--set {override!r}: {section} is not a section"])
    _put(tree, section, key, value_of(raw))


def _put(tree: dict[str, Any], section: str, key: str, value: Any) -> None:
    values = tree.setdefault(section, {})
    values[key] = value
    # Two of these say one thing: naming one of them replaces the other.
    if section == "privacy" and key in _REPLACED_BY:
        values.pop(_REPLACED_BY[key], None)
