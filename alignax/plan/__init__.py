"""Runs for devices that are not there: compiled from shapes, read from their text."""
