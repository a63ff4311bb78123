"""From calibration images to integers: observe, statistics, improve, round, Q/DQ. No runtime's name is known here."""
