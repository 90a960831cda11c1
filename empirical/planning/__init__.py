"""How to split a budget between probing and fine-tuning."""
