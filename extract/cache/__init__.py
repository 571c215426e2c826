"""RoI caches on disk: format, reading and writing. Only this package uses Zarr and h5py."""
