"""The tables of Wang et al., "Classification Calibration for Long-tail Instance Segmentation" (2019), as commands."""
