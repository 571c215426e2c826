"""Mini-LVIS, its detectors, and measurements of accuracy and speed; never part of the wheel."""
