"""Chooses among calibration methods on held-out training images."""
