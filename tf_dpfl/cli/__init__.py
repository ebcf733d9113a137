"""The command `dpfl`: one file for each of its commands."""
