"""LVIS evaluation of detections: metrics, tables and reports. Imports neither caches nor heads."""
