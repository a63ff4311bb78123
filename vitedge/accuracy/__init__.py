"""Accuracy on labelled pictures, and what can honestly be said about it."""
