"""From detections to tables and reports. This package knows neither caches nor heads."""
