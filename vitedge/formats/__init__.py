"""Files and folders in, checked records out, and back: all that lies on disk."""
