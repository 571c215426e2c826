"""Mini-LVIS: a small synthetic dataset with LVIS's long tail, layout and federated annotation."""
