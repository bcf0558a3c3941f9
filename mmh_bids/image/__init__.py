"""Pure numpy and nibabel maths on images; no torch, no nipype."""
