"""Exact reductions: smaller chains with the same law."""
