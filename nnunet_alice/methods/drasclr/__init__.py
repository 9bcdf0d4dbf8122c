"""DrasCLR (Yu et al., MedIA 2024): conditional convolution, queues, losses, momentum model."""
