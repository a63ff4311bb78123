"""The null runtime computes nothing: times that are measured with it are the harness's own overhead."""
