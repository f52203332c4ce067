"""Runtime: device, precision, peak speed, compilation and stop signals."""
