"""Federated data sets: public sources, partitions over clients, a user's own files."""
