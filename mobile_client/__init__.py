"""The device: check in, verify, train, clip, noise, upload. Never TensorFlow."""
