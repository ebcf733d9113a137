"""A user's own functions, named in a plan as "package.module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tf_dpfl.protocol.errors import ModelError


def import_function(path: str, *, name: str) -> Callable[..., Any]:
    """The function that `path` names.

    Args:
      path: "package.module:function".
      name: how errors call the setting, e.g. `task.model='a:b'`.

    Raises:
      ModelError: in one line: `path` is malformed, its module can not be
        imported, or it has no such function.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ModelError(f'{name} must be "package.module:function"')
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ModelError(
            f"{name}: module {module_name} can not be imported: {first_line(error)}"
        ) from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        what = "nothing" if function is None else type(function).__name__
        raise ModelError(
            f"{name}: {function_name} in {module_name} ({getattr(module, '__file__', 'built in')}) "
            f"is {what}, not a function"
        )
    checked: Callable[..., Any] = function
    return checked


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
