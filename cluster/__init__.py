"""Where a run can go: a local cluster that grows as one in a cloud does, and files for clouds."""
