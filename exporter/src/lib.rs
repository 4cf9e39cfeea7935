//! exporter.
