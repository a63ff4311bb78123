"""Classifying camera streams: readers in processes of their own, one session, sinks that never block."""
