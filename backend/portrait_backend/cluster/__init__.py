"""Heads made on the nodes of a Ray cluster: worker processes here give the work to actors there and bring home what they make.

Everything travels through Ray; no disk is shared. Whoever may speak with a Ray cluster may run code on it: docs/security.md.
"""
