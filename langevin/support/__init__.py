"""What every package needs: validation, random keys, signals, threads, the command line."""
