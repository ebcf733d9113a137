"""Keras architectures by domain, and which layers DP can not take."""
