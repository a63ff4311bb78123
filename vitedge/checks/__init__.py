"""What ``vitedge verify`` runs: the self-test of an artifact, on the device that it's for."""
