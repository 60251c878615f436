"""Stages: a config becomes an experiment, runs in the loop and leaves experts."""
