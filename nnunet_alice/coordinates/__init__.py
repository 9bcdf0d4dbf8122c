"""Write anatomical coordinates beside images, as input channels of location-conditioned fine-tuning."""
