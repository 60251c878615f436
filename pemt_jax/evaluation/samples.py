"""Quality and variety of sampled texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def self_bleu(texts: Sequence[str]) -> dict[str, float]:
  """Returns how much texts repeat each other (Zhu et al. 2018, Self-BLEU), in percent.

  It is the mean BLEU of each text with all others as its references: 100 for equal texts. SacreBLEU
  with its defaults; orders of n-grams that a short text does not have are left out.

  Args:
    texts: at least two; fewer give 0.
  """
  from sacrebleu.metrics import BLEU
  if len(texts) < 2:
    return {'self_bleu': 0.0}
  metric = BLEU(effective_order=True)
  each = [metric.sentence_score(text, [*texts[:i], *texts[i + 1:]]).score
          for i, text in enumerate(texts)]
  return {'self_bleu': float(np.mean(each))}
