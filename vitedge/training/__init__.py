"""Class folders and options in, a model folder out. torch is imported in this folder alone."""
