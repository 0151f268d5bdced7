"""Experiments of many trainings: which runs, how they are run, what they say together."""
