"""The same detections through the field's evaluators."""
