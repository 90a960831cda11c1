"""Timings of a step against the floor of the machine and against the peers; growth; memory; start-up."""
