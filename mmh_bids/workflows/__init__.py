"""Nipype graphs: init_*_wf factories."""
