"""/proc, /sys and drivers in; what this machine is and feels out."""
