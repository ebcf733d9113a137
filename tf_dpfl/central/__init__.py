"""Private training of a Keras model on data that lie in one place."""
