"""Figures and reports; nothing in the product imports this."""
