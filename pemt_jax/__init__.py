"""Small experts on frozen pretrained transformers, in JAX: train, mix, mask, factorise, merge."""

from __future__ import annotations

__version__ = '0.1.0.dev0'
