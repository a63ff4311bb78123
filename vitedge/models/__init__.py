"""The Vision Transformer in torch, the zoo of compact sizes, and training. torch lives in this folder alone."""
