"""For tests of the training: torchvision is mended before a test module imports Lightning."""

import mmh_bids.training  # noqa: F401
