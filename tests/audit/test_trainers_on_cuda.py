"""Every trainer runs on a CUDA device (emulated): trains, skips, validates, draws, saves, continues, seldom waits."""

import math
from pathlib import Path

import pytest
import torch
from support.audited import rows, short_trainer
from support.emulated_cuda import CUDA, MixedDevicesError, emulated_cuda


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_run_on_cuda(row, folders):
    waits = []
    with emulated_cuda() as cuda:
        trainer = short_trainer(row, CUDA)
        take_step = trainer.train_step

        def counted(batch):
            cuda.forget()
            output = take_step(batch)
            waits.append(list(cuda.waits))
            return output

        trainer.train_step = counted
        trainer.initialize()
        trainer.num_val_iterations_per_epoch = 2
        trainer.run_training()
        assert waits and all(len(found) <= row.waits for found in waits), "\n".join(waits[-1])
        final = Path(trainer.output_folder) / "checkpoint_final.pth"
        content = torch.load(final, weights_only=row.pretrains)
        assert all(value.isfinite().all() for value in content["network_weights"].values())
        if row.pretrains:
            skips_a_bad_step(trainer)
        continued = short_trainer(row, CUDA)
        continued.load_checkpoint(str(final))
        assert continued.current_epoch == 1


def skips_a_bad_step(trainer) -> None:
    before, scale = weights(trainer), trainer.grad_scaler.get_scale()
    batch = next(trainer.dataloader_train)
    batch.views[:] = math.nan
    output = trainer.train_step(batch)
    assert output["skipped"]
    after = weights(trainer)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert trainer.grad_scaler.get_scale() == scale


def test_a_tensor_that_stays_on_the_cpu_is_caught(folders):
    (row,) = rows("Alice noContrast")
    with emulated_cuda():
        trainer = short_trainer(row, CUDA)
        trainer.initialize()
        trainer.dataloader_train, _ = trainer.get_dataloaders()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        network = trainer.model.student.backbone
        network.register_forward_hook(lambda module, inputs, maps: maps._replace(output=maps.output + torch.ones(1)))
        with pytest.raises(MixedDevicesError):
            trainer.train_step(next(trainer.dataloader_train))


def test_a_wait_is_counted():
    with emulated_cuda() as cuda:
        x = torch.ones(3).to(CUDA, non_blocking=True)
        assert not cuda.waits
        x[x > 0], float(x.sum()), torch.linalg.inv(torch.eye(3, device=CUDA)), x.cpu(), torch.ones(3).to(CUDA)
    assert len(cuda.waits) >= 5
