"""An artifact in; engines for this device, and the choice among its candidates, out."""
