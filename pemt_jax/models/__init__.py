"""Backbones from shared layers; they know sites, but no method."""
