"""Trained models outside of a run: on the Hugging Face hub."""
