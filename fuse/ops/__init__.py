"""Numba kernels and their public functions: NMS, score fusion, mask encoding."""
