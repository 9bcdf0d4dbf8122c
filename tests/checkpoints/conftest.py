"""What tests of checkpoints share."""

from support.small_unets import make_network_fixture, make_plans_fixture, target_dataset

__all__ = ["make_network_fixture", "make_plans_fixture", "target_dataset"]
