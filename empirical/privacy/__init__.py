"""Accounting: histories of mechanisms, what they spend, and the ledger."""
