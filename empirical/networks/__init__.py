"""Networks: bodies, their weights, what makes them private, and which of their parts train."""
