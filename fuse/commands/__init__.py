"""What the commands of `python -m fuse` do."""
