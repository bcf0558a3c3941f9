"""Tests of mmh_bids.training.loop and checkpoint: a training is the same, interrupted or not."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
fabric_module = pytest.importorskip("lightning.fabric")

from mmh_bids.errors import UsageError  # noqa: E402
from mmh_bids.training.checkpoint import load_checkpoint, read_facts, save_checkpoint  # noqa: E402
from mmh_bids.training.loop import CHECKPOINT, Interrupted, Plan, all_parameters, fit  # noqa: E402


class Line:
    """Learns y = 2 x + 1 from noisy points, with a dropout that draws from torch's generator."""

    def __init__(self, stop_at=None, number=signal.SIGTERM):
        self.calls, self.stop_at, self.number, self.validated = 0, stop_at, number, []

    def build(self):
        return torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
        )

    def groups(self, network):
        return all_parameters(network)

    def losses(self, network, rng, device):
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(os.getpid(), self.number)
        x = torch.from_numpy(rng.standard_normal((16, 1))).float().to(device)
        return {"loss": (network(x) - 2 * x - 1).square().mean()}

    def validate(self, network, device, folder, step):
        self.validated.append(step)
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"error": float((network(x) - 2 * x - 1).abs().mean())}


@pytest.fixture
def fabric():
    made = fabric_module.Fabric(accelerator="cpu", devices=1)
    made.launch()
    return made


PLAN = Plan(steps=30, learning_rate=0.05, warmup=3, validate_every=10, checkpoint_seconds=1e9)


def weights(network):
    return {key: value.numpy() for key, value in network.state_dict().items()}


def quiet(line):
    del line


def test_it_learns_and_logs(tmp_path, fabric):
    recipe = Line()
    network = fit(recipe, Plan(steps=300, learning_rate=0.05, average=0.9), tmp_path, fabric, {}, quiet)
    x = torch.tensor([[0.5]])
    assert abs(float(network(x)) - 2) < 0.5
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,name,value" and any(",validation/error," in row for row in rows)
    assert recipe.validated == [100, 200, 300]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("stop_at", "number"), [(1, signal.SIGTERM), (7, signal.SIGINT), (13, signal.SIGUSR1), (29, signal.SIGTERM)]
)
def test_an_interrupted_training_ends_at_the_same_weights(tmp_path, fabric, stop_at, number):
    whole = weights(fit(Line(), PLAN, tmp_path / "whole", fabric, {}, quiet))
    with pytest.raises(Interrupted, match=f"step {stop_at} of 30"):
        fit(Line(stop_at, number), PLAN, tmp_path / "cut", fabric, {}, quiet)
    said = []
    again = weights(fit(Line(), PLAN, tmp_path / "cut", fabric, {}, said.append))
    assert said[0] == f"resumed at step {stop_at}"
    for key, value in whole.items():
        assert np.array_equal(value, again[key]), key


def test_accumulated_gradients_are_those_of_the_whole_batch_and_clipped_once(tmp_path, monkeypatch):
    """Adam takes gradients of any scale for the same, so they are looked at where they are clipped."""

    class Halves(Line):
        def build(self):
            return torch.nn.Linear(1, 1)

        def losses(self, network, rng, device):
            x = torch.tensor([[item.rng.standard_normal()] for item in rng.items(16)]).float()
            return {"loss": (network(x) - 2 * x - 1).square().mean()}

    def clipped(accumulate, folder):
        fabric, found = fabric_module.Fabric(accelerator="cpu", devices=1), []
        clip = fabric.clip_gradients

        def look(network, optimizer, max_norm):
            found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).clone())
            return clip(network, optimizer, max_norm=max_norm)

        monkeypatch.setattr(fabric, "clip_gradients", look)
        fit(Halves(), Plan(steps=3, accumulate=accumulate), tmp_path / folder, fabric, {}, quiet)
        return torch.stack(found)

    whole, parts = clipped(1, "whole"), clipped(4, "parts")
    assert len(whole) == len(parts) == 3
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert whole[0].norm() > 1


def test_the_passes_of_a_step_may_differ_when_it_goes_on(tmp_path, fabric):
    """A job may come back with more memory or less."""
    with pytest.raises(Interrupted):
        fit(Line(5), PLAN, tmp_path, fabric, {}, quiet)
    said = []
    fit(Line(), replace(PLAN, accumulate=2), tmp_path, fabric, {}, said.append)
    assert said[0] == "resumed at step 5"


def test_all_processes_must_see_the_same_checkpoint(tmp_path, fabric, monkeypatch):
    monkeypatch.setattr(fabric, "all_gather", lambda steps: torch.stack([steps, steps + 5]))
    with pytest.raises(UsageError, match="not all processes see the same one; --work must lie where every node"):
        fit(Line(), PLAN, tmp_path, fabric, {}, quiet)


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path, fabric):
    """Killed means: no last checkpoint was written; what counts is the one before."""

    class Killed(Line):
        def losses(self, network, rng, device):
            if self.calls == 20:
                raise RuntimeError("killed")
            return super().losses(network, rng, device)

    plan = Plan(steps=30, learning_rate=0.05, warmup=3, validate_every=10, checkpoint_seconds=0)
    whole = weights(fit(Line(), plan, tmp_path / "whole", fabric, {}, quiet))
    with pytest.raises(RuntimeError, match="killed"):
        fit(Killed(), plan, tmp_path / "cut", fabric, {}, quiet)
    assert read_facts(tmp_path / "cut" / CHECKPOINT)["step"] == 20
    again = weights(fit(Line(), plan, tmp_path / "cut", fabric, {}, quiet))
    for key, value in whole.items():
        assert np.array_equal(value, again[key]), key


def test_a_checkpoint_of_another_training_is_refused(tmp_path, fabric):
    with pytest.raises(Interrupted):
        fit(Line(5), PLAN, tmp_path, fabric, {"data": "a"}, quiet)
    with pytest.raises(UsageError, match="other data"):
        fit(Line(), PLAN, tmp_path, fabric, {"data": "b"}, quiet)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path, fabric, damage):
    with pytest.raises(Interrupted):
        fit(Line(5), PLAN, tmp_path, fabric, {}, quiet)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"not a checkpoint")
    with pytest.raises(UsageError, match=CHECKPOINT):
        fit(Line(), PLAN, tmp_path, fabric, {}, quiet)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", {"network": torch.nn.Linear(2, 2)}, {}, {"step": 1})
    with pytest.raises(UsageError, match="another network"):
        load_checkpoint(tmp_path / "a.safetensors", {"network": torch.nn.Linear(3, 2)}, {})


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, fabric):
    class Broken(Line):
        def losses(self, network, rng, device):
            return {"loss": super().losses(network, rng, device)["loss"] * float("nan")}

    with pytest.raises(UsageError, match="loss is nan at step 0"):
        fit(Broken(), PLAN, tmp_path, fabric, {}, quiet)


class Curve(Line):
    """The same points at every step, nothing random; validation that stops improving."""

    def build(self):
        return torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def losses(self, network, rng, device):
        super().losses(network, rng, device)  # counts, and stops where it is to
        x = torch.linspace(-1, 1, 16)[:, None]
        return {"loss": (network(x) - x.abs()).square().mean()}

    def validate(self, network, device, folder, step):
        return {"other": -step, "error": max(float((network(torch.ones(3, 1)) - 1).abs().mean()), 0.3)}


PLATEAU = Plan(
    steps=60, learning_rate=0.02, warmup=0, weight_decay=0.0, clip=None, average=0.0, validate_every=4,
    checkpoint_seconds=1e9, optimizer="adam", schedule="plateau", patience=1, monitor="error",
)  # fmt: skip


def test_adam_on_a_plateau_is_what_torch_does_alone(tmp_path, fabric):
    trained = weights(fit(Curve(), PLATEAU, tmp_path, fabric, {}, quiet))
    torch.manual_seed(PLATEAU.seed)
    recipe = Curve()
    network = recipe.build()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    for step in range(1, 61):
        optimizer.zero_grad()
        x = torch.linspace(-1, 1, 16)[:, None]
        (network(x) - x.abs()).square().mean().backward()
        optimizer.step()
        if step % 4 == 0:
            with torch.no_grad():
                scheduler.step(recipe.validate(network, None, None, step)["error"])
    assert optimizer.param_groups[0]["lr"] < 0.02 / 50  # it was lowered, and more than once
    for key, value in weights(network).items():
        assert np.allclose(value, trained[key], atol=1e-6), key
    other = weights(fit(Curve(), replace(PLATEAU, schedule="cosine"), tmp_path / "cosine", fabric, {}, quiet))
    assert max(float(np.abs(value - trained[key]).max()) for key, value in other.items()) > 1e-3


@pytest.mark.parametrize("stop_at", [9, 24, 43])
def test_a_resumed_training_knows_how_long_it_has_been_on_the_plateau(tmp_path, fabric, stop_at):
    whole = weights(fit(Curve(), PLATEAU, tmp_path / "whole", fabric, {}, quiet))
    with pytest.raises(Interrupted):
        fit(Curve(stop_at), PLATEAU, tmp_path / "cut", fabric, {}, quiet)
    assert read_facts(tmp_path / "cut" / CHECKPOINT)["plateau"]["best"] > 0
    again = weights(fit(Curve(), PLATEAU, tmp_path / "cut", fabric, {}, quiet))
    for key, value in whole.items():
        assert np.array_equal(value, again[key]), key


def test_no_clipping_and_no_average_leave_gradients_and_weights_as_they_are(tmp_path, fabric):
    plan = replace(PLATEAU, steps=3, schedule="cosine")
    plain = weights(fit(Curve(), plan, tmp_path / "plain", fabric, {}, quiet))
    clipped = weights(fit(Curve(), replace(plan, clip=1e-6), tmp_path / "clipped", fabric, {}, quiet))
    averaged = weights(fit(Curve(), replace(plan, average=0.99), tmp_path / "averaged", fabric, {}, quiet))
    for other in (clipped, averaged):
        assert any(not np.array_equal(value, plain[key]) for key, value in other.items())


def test_an_older_checkpoint_counts_as_one_of_the_plan_as_it_was(tmp_path, fabric):
    with pytest.raises(Interrupted):
        fit(Line(5), PLAN, tmp_path, fabric, {}, quiet)
    assert not {"optimizer", "schedule", "patience", "monitor"} & set(read_facts(tmp_path / CHECKPOINT)["plan"])
    with pytest.raises(UsageError, match="other plan"):
        fit(Line(), replace(PLAN, optimizer="adam"), tmp_path, fabric, {}, quiet)
    fit(Line(), PLAN, tmp_path, fabric, {}, quiet)


@pytest.mark.parametrize("wrong", [{"optimizer": "sgd"}, {"schedule": "steps"}, {"schedule": "plateau"}])
def test_a_plan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="schedule"):
        replace(PLAN, **wrong)
