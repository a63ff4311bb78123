"""A model, a budget of latency and unlabelled pictures in; a narrower model that meets it, out."""
