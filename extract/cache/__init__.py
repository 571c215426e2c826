"""RoI caches on disk: the format, reading and writing. Only this package uses Zarr and h5py."""
