"""Experiments: what runs, side by side, and what its trainings say together."""
