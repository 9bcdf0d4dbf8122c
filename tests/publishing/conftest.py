"""What tests of publishing share."""

from support.publications import checkpoint, home, published, serve

__all__ = ["checkpoint", "home", "published", "serve"]
