"""Weights from disk into networks, and back."""
