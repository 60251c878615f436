"""Recipes of ProPETL (arXiv 2305.17682)."""
