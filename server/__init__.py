"""The server: rounds with real devices over HTTP. Never imports TensorFlow."""
