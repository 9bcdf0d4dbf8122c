"""Parts of the fine-tuning trainers: learning rates, loading of pretrained weights, repeatable augmentation."""
