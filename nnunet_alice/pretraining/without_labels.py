"""Parts of nnU-Net's trainer that make no sense without labels, switched off in one place."""

import os


class NoSegmentation:
    """Mixed in before ``nnUNetTrainer`` by trainers that learn from unlabelled volumes."""

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to switch: pretraining uses one output."""

    def plot_network_architecture(self) -> None:
        """Nothing to plot: nnU-Net's plot needs a package that no longer works."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Say what to do next; there is no segmentation to validate after pretraining."""
        checkpoint = os.path.join(self.output_folder, "checkpoint_final.pth")
        self.print_to_log_file(
            f"Pretraining has no segmentation to validate. What the checkpoint holds and how to fine-tune from it: "
            f"nnunet_alice inspect {checkpoint}"
        )
