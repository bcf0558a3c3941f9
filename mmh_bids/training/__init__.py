"""Training of model bundles, one recipe a method."""
