"""Smaller checkpoints from masks."""
