"""Recipes: each method states plan, trainable rules, extra loss and metrics."""
