"""A float graph and unlabelled pictures in, the same graph with narrower layers out."""
