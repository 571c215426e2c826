"""Calibrated detectors for deployment: framework checkpoints, folded checkpoints, torch programs."""
