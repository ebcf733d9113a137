"""The exceptions a user of tf_dpfl can meet.

    DpflError
    ├── PlanError        a plan file or its values are not usable
    ├── DataError        a data source is missing, malformed or too small
    ├── ModelError       a Keras model cannot be trained under this plan
    ├── ExportError      a TFLite file would not compute what TensorFlow does
    ├── TaskError        a manifest, signature, digest or validity is wrong
    ├── WireError        a request or reply breaks the protocol
    ├── BudgetError      the privacy budget or a device's own limit forbids it
    ├── StateError       a run, a server state or a device state is not usable
    └── MissingPackageError  a package that must be installed apart is not there

Every command turns a DpflError into one line per fault and exit status 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class DpflError(Exception):
    """Base of every error that names what was wrong, where and what to do."""


class PlanError(DpflError):
    """A plan with all its faults; `faults` holds one line for each."""

    def __init__(self, faults: Sequence[str]):
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(DpflError):
    """A data source is missing, malformed or too small for the plan."""


class ModelError(DpflError):
    """A Keras model that cannot be trained privately; `faults` lists every layer."""

    def __init__(self, faults: str | Sequence[str]):
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class ExportError(DpflError):
    """The exported file would not compute what TensorFlow computes; `faults` lists why."""

    def __init__(self, faults: str | Sequence[str]):
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class TaskError(DpflError):
    """A task's manifest, signature, digest, version or validity is wrong."""


class WireError(DpflError):
    """A request or reply that breaks the wire protocol.

    `status` is the HTTP status the server answers with.
    """

    def __init__(self, message: str, *, status: int = 400):
        self.status = status
        super().__init__(message)


class BudgetError(DpflError):
    """A privacy budget, or a device's own limit, forbids the next step."""


class StateError(DpflError):
    """A run folder, server state or device state that cannot be used."""


class MissingPackageError(DpflError, ImportError):
    """A package that this part of tf_dpfl needs, and no extra can name, is missing."""
