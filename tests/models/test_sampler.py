"""The samplers against a float64 implementation that knows nothing of MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmh_bids.models.sampler import (
    PaperSampler,
    PlainSampler,
    estimate_clean,
    make_sampler,
    training_schedule,
)
from mmh_bids.models.unet import StyleUNet


def cumulative(steps, start, end):
    """Cumulative product of 1 - beta, square roots of beta evenly spaced."""
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, steps) ** 2)


def ddim(x, noise, here, there):
    """Song et al. 2021, formula 12 with sigma 0, from cumulative alpha `here` to `there`."""
    clean = (x - np.sqrt(1 - here) * noise) / np.sqrt(here)
    return np.sqrt(there) * clean + np.sqrt(1 - there) * noise


def smooth(x, t):
    """A predictor that can be written down in numpy and in torch."""
    return 0.8 * np.tanh(1.5 * x) + 0.3 * np.sin(t / 60)


def recorded(calls):
    def predict(x, t):
        calls.append(int(t[0]))
        return 0.8 * torch.tanh(1.5 * x) + 0.3 * torch.sin(t.double() / 60).reshape(-1, 1, 1, 1, 1)

    return predict


@pytest.fixture
def image():
    return torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (2, 1, 3, 4, 5)))


def test_the_training_schedule():
    schedule = training_schedule()
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), cumulative(1000, 0.0015, 0.0195), rtol=2e-4)
    assert schedule.num_train_timesteps == 1000


def test_the_paper_sampler_inverts_to_34_and_denoises_from_48(image):
    alpha, calls = cumulative(50, 0.0005, 0.0195), []
    sampler = PaperSampler()
    latent = sampler.invert(recorded(calls), image)
    assert calls == list(range(34))
    x = image.numpy()
    for t in range(34):
        x = ddim(x, smooth(x, t), alpha[t], alpha[t + 1])
    np.testing.assert_allclose(latent.numpy(), x, atol=1e-5)

    calls.clear()
    out = sampler.denoise(recorded(calls), latent)
    assert calls == list(range(48, -1, -2))
    for t in range(48, -1, -2):
        x = ddim(x, smooth(x, t), alpha[t], alpha[t - 2] if t >= 2 else 1.0)
    np.testing.assert_allclose(out.numpy(), x, atol=1e-4)
    assert sampler.passes == 59


@pytest.mark.parametrize(("steps", "top"), [(1, 1), (1, 999), (7, 160), (25, 500), (160, 160)])
def test_the_plain_sampler_goes_up_and_down_the_same_levels(image, steps, top):
    alpha, calls = cumulative(1000, 0.0015, 0.0195), []
    levels = [round(top * k / steps) for k in range(steps + 1)]
    sampler = PlainSampler(steps=steps, top=top)
    latent = sampler.invert(recorded(calls), image)
    out = sampler.denoise(recorded(calls), latent)
    assert calls == levels[:-1] + levels[:0:-1]
    x = image.numpy()
    for here, there in zip(levels[:-1], levels[1:], strict=True):
        x = ddim(x, smooth(x, here), alpha[here], alpha[there])
    np.testing.assert_allclose(latent.numpy(), x, rtol=1e-3, atol=1e-4)
    for here, there in zip(levels[:0:-1], levels[-2::-1], strict=True):
        x = ddim(x, smooth(x, here), alpha[here], alpha[there])
    np.testing.assert_allclose(out.numpy(), x, rtol=1e-3, atol=1e-3)


def test_noise_that_is_the_same_at_all_levels_brings_the_image_back_in_plain_but_not_in_paper(image):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)

    def round_trip(sampler):
        return sampler.denoise(lambda x, t: noise, sampler.invert(lambda x, t: noise, image))

    assert (round_trip(PlainSampler(steps=6, top=700)) - image).abs().max() < 1e-4
    assert (round_trip(PaperSampler()) - image).abs().max() > 0.05


def test_a_network_is_told_the_training_steps_and_gives_what_numpy_gives():
    """The same loop with a real, tiny U-Net: numpy does the arithmetic, the network in float64 the predictions."""
    torch.manual_seed(0)
    network = StyleUNet([4, 8], 1, [False, False], [0, 4], 4, style_hidden=4).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.rand(1, 1, 6, 6, 6, dtype=torch.float64) * 2 - 1
    condition, label = 0.1 * image, torch.tensor([1])
    style = torch.tensor([[-0.3, 0.4]], dtype=torch.float64)

    def predict(x, t):
        return network(x, condition, t, label, style)

    sampler, alpha = PlainSampler(steps=4, top=200), cumulative(1000, 0.0015, 0.0195)
    with torch.no_grad():
        out = sampler.denoise(predict, sampler.invert(predict, image))
        x = image.numpy()
        levels = [0, 50, 100, 150, 200]
        for here, there in [
            *zip(levels[:-1], levels[1:], strict=True),
            *zip(levels[:0:-1], levels[-2::-1], strict=True),
        ]:
            noise = predict(torch.from_numpy(x), torch.tensor([here])).numpy()
            x = ddim(x, noise, alpha[here], alpha[there])
    np.testing.assert_allclose(out.numpy(), x, atol=1e-4)
    assert np.abs(x - image.numpy()).max() > 1e-3


def test_the_last_steps_alone(image):
    sampler = PaperSampler()
    whole = sampler.denoise(recorded([]), image)
    calls = []
    first = sampler.denoise(recorded([]), image, slice(None, 15))
    assert torch.equal(sampler.denoise(recorded(calls), first, slice(15, None)), whole)
    assert len(calls) == 10


def test_gradients_flow_through_denoising(image):
    scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    PlainSampler(steps=3).denoise(lambda x, t: scale * x, image).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_the_clean_estimate_undoes_the_noise():
    schedule, generator = training_schedule(), torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 4, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(image.shape, generator=generator)
    timesteps = torch.tensor([0, 400, 700])
    noisy = schedule.add_noise(image, noise, timesteps)
    torch.testing.assert_close(estimate_clean(schedule, noisy, noise, timesteps), image, atol=1e-4, rtol=0)
    far = estimate_clean(schedule, noisy, torch.zeros_like(noise), torch.tensor([999] * 3))
    assert far.abs().max() == 1


@pytest.mark.parametrize("sampler", [PaperSampler(), PlainSampler(steps=9, top=300), PaperSampler(beta_start=0.0015)])
def test_a_card_makes_the_same_sampler(sampler):
    assert make_sampler(sampler.card) == sampler


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"name": "fast"}, "unknown; there are paper, plain"),
        ({}, "unknown"),
        ({"name": "plain", "pace": 3}, "pace"),
        ({"name": "plain", "steps": 0}, "1 <= steps"),
        ({"name": "plain", "steps": 5, "top": 1000}, "top < 1000"),
        ({"name": "paper", "invert_steps": 51}, "within the schedule's 50"),
    ],
)
def test_a_wrong_card_is_refused(card, words):
    with pytest.raises(ValueError, match=words):
        make_sampler(card)
