"""PEMT stage 1 with adapter experts (spec variant): reduction 48, lr 5e-4, 5 epochs, warm-up 500."""

from configs.pemt import stage1


def get_config(argument: str | None = None):
  """See `stage1`."""
  config = stage1.get_config(argument)
  config.method.expert = 'adapter'
  return config
