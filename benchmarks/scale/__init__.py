"""The whole pipeline at the size of LVIS v1, on tiny images."""
