"""What every command needs: command lines, devices, files, threads and processes."""
