"""A name in, a folder with the steps of a project out, and its steps run."""
