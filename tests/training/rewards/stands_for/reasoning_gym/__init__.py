"""Stands for the package reasoning-gym in `test_reasoning`: its registry, and one family."""

from . import factory


def create_dataset(name, **settings):
    kind, config = factory.DATASETS[name][:2]
    return kind(config(**settings))
