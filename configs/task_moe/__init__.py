"""Recipes of the task-level mixture of experts (arXiv 2205.12701)."""
