"""The float graph and calibration images in; statistics, integers and Q/DQ graphs out."""
