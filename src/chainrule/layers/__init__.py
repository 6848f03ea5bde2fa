"""Blocks that several models use."""
