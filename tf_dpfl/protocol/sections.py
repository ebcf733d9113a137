"""Reading one section of a plan: the values of its dataclass, and every fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tf_dpfl.protocol.checks import Rule


def shown_key(key: Any) -> str:
    """A key from a file in one line: as it is if it is a plain word, else quoted."""
    return key if isinstance(key, str) and key.isidentifier() else repr(key)


def read_section(
    name: str, cls: type[Any], values: Mapping[str, Any], source: str, faults: list[str]
) -> dict[str, Any]:
    """The values of one section that could be read, defaults included; adds its faults."""
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            faults.append(
                f"{source}: unknown key {name}.{shown_key(key)}; known: {', '.join(known)}"
            )
    arguments: dict[str, Any] = {}
    for key, f in known.items():
        rule: Rule = f.metadata["rule"]
        if key not in values:
            if f.default is not f.default_factory:  # both MISSING when required
                arguments[key] = f.default
                continue
            faults.append(f"{source}: {name}.{key} is missing; it must be {rule.allowed}")
        elif not rule.accepts(values[key]):
            faults.append(f"{source}: {name}.{key}={values[key]!r} must be {rule.allowed}")
        else:
            arguments[key] = rule.convert(values[key])
    return arguments
