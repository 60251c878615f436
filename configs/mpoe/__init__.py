"""Recipes of MPOE (arXiv 2203.01104) and of the adapters it is compared with."""
