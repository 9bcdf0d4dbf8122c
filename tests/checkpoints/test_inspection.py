"""Inspection of checkpoints whose plans are written in ways that nnU-Net allows."""

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.checkpoints.pretraining import describe_run
from nnunet_alice.checkpoints.saving import save_checkpoint


def test_a_configuration_that_inherits_is_described(make_plans, make_network, tmp_path):
    plans = make_plans("residual", anisotropic=True)
    plans["configurations"]["3d_base"]["normalization_schemes"] = ["CTNormalization"]
    run = describe_run(
        method="Alice",
        trainer_name="AliceTrainer",
        plans=plans,
        configuration="3d_fullres",
        dataset_json={"channel_names": {"0": "CT"}, "numTraining": 4},
        num_input_channels=1,
        hyper_parameters={"epochs": 2, "iterations": 3},
        epochs_done=2,
        trained={"encoder": True, "decoder": False},
        matching=None,
        fold="all",
    )
    network = make_network(plans)
    plans["orientation"] = "PIR"  # of the plans, where the run itself does not say it
    save_checkpoint({"network_weights": network.state_dict(), **run}, tmp_path / "c.pth")
    described = describe_checkpoint(tmp_path / "c.pth")
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    everything = sum(parameter.numel() for parameter in network.parameters())
    for line, count in zip(described["trained"], (encoder, everything - encoder), strict=True):
        assert f"({count:,} parameters)" in line
    assert described["network"] == "ResidualEncoderUNet" and described["normalisation"] == "CTNormalization"
    assert described["patch size"].startswith("64 x 64 x 64 voxels") and described["spacing"].startswith("3 x 1 x 1 mm")
    assert described["orientation"] == "PIR" and "weights" not in described
    weights = network.state_dict()
    next(iter(weights.values())).fill_(float("nan"))
    run["pretraining"]["orientation"] = "LAS"
    save_checkpoint({"network_weights": weights, **run}, tmp_path / "c.pth")
    described = describe_checkpoint(tmp_path / "c.pth")
    assert described["orientation"] == "LAS" and described["weights"].startswith("NaN or infinity in 1 of")
