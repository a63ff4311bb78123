"""Sessions and rules in; raw samples, sensor readings, audits and verdicts out."""
