"""What several bounds use: coverage, ranges of numbers, phases, roots."""
