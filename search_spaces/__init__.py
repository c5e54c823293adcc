"""Search spaces: plain functions ``space(trial, layers, target) -> Policy``, one a module. Copy one and change it."""
