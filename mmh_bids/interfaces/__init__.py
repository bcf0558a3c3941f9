"""Nipype interfaces: files in, files out, thin over the other packages."""
