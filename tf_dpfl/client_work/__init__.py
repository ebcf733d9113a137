"""The heart: what one client computes, written once as TensorFlow functions."""
