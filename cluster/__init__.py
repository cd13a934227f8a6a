"""Clusters for runs: a local one that grows like a cluster in a cloud, and files for clouds."""
