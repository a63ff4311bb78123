"""The live page, the metrics and the health endpoint, served by a process of their own."""
