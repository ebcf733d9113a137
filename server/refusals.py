"""What a device is told when a round does not take its update."""

from __future__ import annotations

from tf_dpfl.protocol.errors import WireError


def closed(number: int) -> WireError:
    """The round takes no updates any more."""
    return WireError(
        f"round {number} has closed; throw the update away and check in again", status=410
    )


def conflict(number: int) -> WireError:
    """Another update of the device was counted."""
    return WireError(
        f"round {number} has another update of this device already; it keeps the first one",
        status=409,
    )


def not_invited(device_id: str, number: int) -> WireError:
    """The device was not drawn for the round."""
    return WireError(
        f"device {device_id} is not invited to round {number}; check in again", status=403
    )
