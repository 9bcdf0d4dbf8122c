"""One optimiser step of a toy method: what changes, and what does not where something is not finite."""

import copy
import math

import pytest
import torch
from torch import nn

from nnunet_alice.pretraining.method import Method, Progress, RunContext, StepResult
from nnunet_alice.pretraining.optimisation import Optimisation
from nnunet_alice.pretraining.step import TrainingStep
from nnunet_alice.views.batch import Batch

SGD = Optimisation(learning_rate=0.5, warmup_share=0.0, weight_decay_range=(0.0, 0.0), sgd_momentum=0.9)


class Toy(Method[Batch, None]):
    """Mean square of a linear layer behind a batch norm; counts what it is asked to do."""

    name = "Toy"

    def make_model(self, network):
        self.calls = []
        return network

    def batches(self, cases, training):
        raise NotImplementedError

    def compute(self, batch, progress, training):
        loss = self.module_for(training)(batch.views).square().mean()
        return StepResult(loss, {"loss": loss.detach()})

    def after_backward(self, progress):
        self.calls.append("backward")

    def after_step(self, progress):
        self.calls.append(("step", progress.step))


class InfiniteGradient(torch.autograd.Function):
    """Passes numbers on; their gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


class Exploding(Toy):
    """Toy with infinite gradients in every step but the first."""

    def compute(self, batch, progress, training):
        result = super().compute(batch, progress, training)
        return result if progress.step == 0 else StepResult(InfiniteGradient.apply(result.loss), result.metrics)


def stepper(kind=Toy, scaler=None, optimisation=SGD):
    torch.manual_seed(0)
    method = kind(None, RunContext(None, (4, 4, 4), (1.0, 1.0, 1.0), batch_size=2))
    method.build(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    return TrainingStep(method, optimisation.optimizer(method.trained_module), optimisation, scaler)


def batch(seed=0):
    return Batch(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), ["a", "b"])


def state(step) -> dict:
    tensors = {**step.method.model.state_dict(), **step.optimizer.state_dict()["state"]}
    return copy.deepcopy(tensors)


def same(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


def test_a_step_is_torchs_own_step():
    step, naive = stepper(), stepper().method.model
    optimizer = torch.optim.SGD(naive.parameters(), lr=0.5, momentum=0.9)
    for number in range(2):
        outcome = step(batch(number), Progress(0, number, 10**9))
        optimizer.zero_grad()
        loss = naive(batch(number).views).square().mean()
        loss.backward()
        optimizer.step()
        assert outcome.skipped is None and outcome.metrics["loss"] == loss and outcome.cases == ()
    for one, two in zip(step.method.model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert step.method.calls == ["backward", ("step", 0), "backward", ("step", 1)]


def test_gradients_are_clipped_before_the_step():
    clipped = Optimisation(learning_rate=1.0, warmup_share=0.0, sgd_momentum=0.0, weight_decay_range=(0.0, 0.0))
    step = stepper(optimisation=clipped)
    before = state(step)
    step(Batch(1e3 * batch().views, ["a"]), Progress(0, 0, 10**9))
    moved = [(state(step)[name] - before[name]).norm() for name in ("1.weight", "1.bias")]
    assert max(moved) <= 3.0 + 1e-4


def test_a_loss_that_is_not_finite_leaves_nothing_behind():
    step = stepper()
    step(batch(), Progress(0, 0, 10))
    before, bad = state(step), batch()
    bad.views[0, 0] = math.nan
    outcome = step(bad, Progress(0, 1, 10))
    assert outcome.skipped == "loss" and outcome.cases == ("a", "b") and outcome.metrics == {}
    assert same(state(step), before) and step.method.calls == ["backward", ("step", 0)]


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_that_are_not_finite_leave_nothing_behind(scaled):
    """On the CPU they would otherwise be applied; on CUDA the scaler leaves the step out and says nothing."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    step = stepper(Exploding, scaler)
    assert step(batch(), Progress(0, 0, 10)).skipped is None
    before = state(step)
    outcome = step(batch(), Progress(0, 1, 10))
    assert outcome.skipped == "gradients" and outcome.cases == ("a", "b") and outcome.metrics["loss"].isfinite()
    assert same(state(step), before) and ("step", 1) not in step.method.calls
    assert scaler is None or scaler.get_scale() == 4.0


def test_a_scaled_step_is_the_plain_one():
    plain, scaled = stepper(), stepper(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    for step in (plain, scaled):
        for number in range(2):
            assert step(batch(number), Progress(0, number, 10)).skipped is None
    for one, two in zip(plain.method.model.parameters(), scaled.method.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
