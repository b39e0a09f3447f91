"""Measures of the quality of images."""
