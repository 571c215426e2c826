"""Annotation files, class tables, bins of classes and images."""
