"""What the networks see: crops, masks, augmentation and the loaders that deliver them."""
