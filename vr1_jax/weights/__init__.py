"""Checkpoints: read, written and converted."""
