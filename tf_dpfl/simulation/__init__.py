"""Federated training of a plan in TensorFlow Federated."""

from importlib.util import find_spec

from tf_dpfl.protocol.errors import MissingPackageError

# Packages that no extra can name (README): their pins cannot be resolved.
_INSTALLED_APART = {
    "tensorflow_federated": "tensorflow-federated==0.87.0",
    "tensorflow_privacy": "tensorflow-privacy==0.9.0",
    "vizier": "google-vizier==0.1.11",
}

_missing = [pin for module, pin in _INSTALLED_APART.items() if find_spec(module) is None]
if _missing:
    raise MissingPackageError(
        f"simulating needs {' '.join(_missing)}; "
        f"pip install --no-deps {' '.join(_INSTALLED_APART.values())}"
    )
