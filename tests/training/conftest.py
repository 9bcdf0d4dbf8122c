"""What tests of training share."""

from support.launched import asked

__all__ = ["asked"]
