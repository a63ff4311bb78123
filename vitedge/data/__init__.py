"""Folders, archives and shards of pictures in; pictures, and frames at the model's size, out."""
