"""Timings of this project and of other libraries, alternating in one process."""
