"""Mini-LVIS: a small synthetic data set with LVIS's long tail, layout and federated annotation."""
