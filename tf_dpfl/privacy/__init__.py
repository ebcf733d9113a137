"""The privacy room: mechanisms as data, their accounting, calibration, ledger and card."""
