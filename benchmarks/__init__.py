"""Time a step against the machine's floor and against the peers; measure growth, memory and start-up."""
