"""Networks and model bundles; no nibabel, no nipype."""
