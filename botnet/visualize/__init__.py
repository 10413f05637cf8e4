"""Drawings of predictions, attention and training curves."""
