"""Files that ship with the package: model bundles, citations, report templates."""
