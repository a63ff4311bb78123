"""The runtime that answers at once: whatever is measured with it is the harness's own overhead."""
