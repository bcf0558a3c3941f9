"""Training of model bundles, one recipe a method."""

from mmh_bids.models.vision import mend_torchvision

# Lightning imports torchvision wherever it is installed, and dies with it.
mend_torchvision()
