"""What is timed, how, and its tables."""
