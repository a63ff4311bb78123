"""The latency harness: a load generator that knows neither model nor runtime, its sensors and its verdicts."""
