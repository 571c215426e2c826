"""What all three packages use: command line, devices, files, threads, processes, memory."""
