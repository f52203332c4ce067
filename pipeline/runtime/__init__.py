"""How to run: the device, its precision and speed, and compilation."""
