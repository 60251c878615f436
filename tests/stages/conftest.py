"""Runs that the tests of stages share."""

from tests.stages.fixtures import backbone, base, stage1, stage2  # pylint: disable=unused-import
