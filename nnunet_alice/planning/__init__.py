"""Plan for pretraining and preprocess unlabelled cases, within the memory that training has."""
