"""An artifact on the device that it's for in, one check a question out."""
