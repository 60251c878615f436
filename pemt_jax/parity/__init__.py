"""Recomputes cases recorded from the original programs of the five systems."""
