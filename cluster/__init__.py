"""Ray clusters: a local cluster that grows like one in a cloud, and files for clouds."""
